//! Writing tensors.

use qfw_core::Result;
use qfw_core::checkpoint::native::{NativeReader, NativeSite};
use qfw_core::checkpoint::{ContainerWriter, TensorDecl};

use crate::activation;
use crate::layout::{Choice, Layout};

fn layouts(choice: Choice, native: &NativeReader) -> impl Iterator<Item = (&NativeSite, Layout)> {
    let inputs = activation::inputs(&native.activations);
    native.sites.iter().map(move |s| (s, Layout::of(choice, &s.spec, inputs.get(s.module.as_str()).copied())))
}

pub(crate) fn declare(choice: Choice, native: &NativeReader) -> Result<Vec<TensorDecl>> {
    let mut out: Vec<TensorDecl> = layouts(choice, native).flat_map(|(site, layout)| layout.declare(site)).collect();
    out.extend(activation::declare(native)?);
    out.extend(native.plain().into_iter().map(|i| TensorDecl { name: i.name.clone(), dtype: i.dtype.clone(), shape: i.shape.clone() }));
    Ok(out)
}

pub(crate) fn write(choice: Choice, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
    for (site, layout) in layouts(choice, native) {
        write_module(layout, native, site, out).map_err(|e| e.within(format!("`{}`", site.site)))?;
    }
    activation::write(native, out)?;
    for info in native.plain() {
        native.copy_plain(&info.name, out)?;
    }
    Ok(())
}

fn write_module(layout: Layout, native: &NativeReader, site: &NativeSite, out: &mut dyn ContainerWriter) -> Result<()> {
    let rounded = native.rounded(site)?;
    for decl in layout.declare(site) {
        let suffix = decl.name.rsplit('.').next().unwrap_or("");
        out.write(&decl.name, &layout.encode(site, &rounded, suffix)?)?;
    }
    Ok(())
}
