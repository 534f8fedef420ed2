//! `plugin.toml` of a package, which listings read of packages that nobody has added.

use qfw_loader::Package;

use crate::Target;
use crate::stage::Stage;
use crate::verdict::sound;

pub(crate) const TARGET: Target = Target { name: "manifest", about: "plugin.toml of a package", run, seeds };

thread_local!(static STATE: Stage = Stage::empty());

fn run(data: &[u8]) {
    STATE.with(|stage| {
        stage.put("plugin.toml", data);
        let Some(package) = sound(Package::open(stage.path())) else { return };
        sound(package.manifest.fits());
        if let Some(library) = sound(package.library()) {
            assert_eq!(library.parent(), Some(stage.path()), "a library lies in its package");
        }
    });
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let text = format!(
        "id = \"com.example.near\"\nversion = \"0.1.0\"\nabi = {{ major = 1, minor = 0 }}\nkind = \"cdylib\"\nlicense = \"MIT\"\n\n\
         [[algo]]\nid = \"near\"\nphase = \"round\"\nsummary = \"nearest\"\nweight-only = true\n\n\
         [[format]]\nid = \"near4\"\nsummary = \"four\"\n\n[target.{}]\nfile = \"libnear.so\"\nblake3 = \"00\"\n",
        qfw_loader::target()
    );
    vec![("package".to_owned(), text.into_bytes())]
}
