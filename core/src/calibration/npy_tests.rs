use super::*;

/// A file as `numpy.save` writes it: the header padded with spaces to a multiple of 64, ended by a line feed.
fn file(version: u8, dtype: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}");
    let prefix = if version == 1 { 10 } else { 12 };
    while (prefix + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = [b"\x93NUMPY".as_slice(), &[version, 0]].concat();
    match version {
        1 => bytes.extend((header.len() as u16).to_le_bytes()),
        _ => bytes.extend((header.len() as u32).to_le_bytes()),
    }
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn refused(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn each_type_and_shape_reads() {
    let data = |width: usize| [1u8, 2, 3, 4, 5, 6].iter().flat_map(|v| [vec![*v], vec![0; width - 1]].concat()).collect::<Vec<u8>>();
    for (dtype, width) in [("'<i8'", 8), ("'<i4'", 4), ("'<u4'", 4), ("'<u2'", 2)] {
        for version in [1, 2, 3] {
            let rows = read(&file(version, dtype, "False", "(2, 3)", &data(width))).unwrap();
            assert_eq!(rows, [vec![1, 2, 3], vec![4, 5, 6]], "{dtype}");
        }
        assert_eq!(read(&file(1, dtype, "False", "(6,)", &data(width))).unwrap(), [vec![1, 2, 3, 4, 5, 6]]);
    }
    assert_eq!(read(&file(1, "'<u2'", "False", "(1,)", &[255, 255])).unwrap(), [vec![65535]]);
}

#[test]
fn arrays_that_are_no_ids() {
    assert_eq!(
        refused(&file(1, "'<f4'", "False", "(1,)", &[0; 4])),
        "the array has the type `<f4`, which is not one of <i8, <i4, <u4, <u2"
    );
    assert_eq!(
        refused(&file(1, "'>i4'", "False", "(1,)", &[0; 4])),
        "the array has the type `>i4`, which is not one of <i8, <i4, <u4, <u2"
    );
    assert_eq!(refused(&file(1, "'<i4'", "True", "(1, 1)", &[0; 4])), "the array is in Fortran order");
    assert_eq!(refused(&file(1, "'<i4'", "False", "(1, 1, 1)", &[0; 4])), "the ids have the shape [1, 1, 1], with 3 dimensions");
    assert_eq!(refused(&file(1, "'<i4'", "False", "()", &[0; 4])), "the ids have the shape [], with 0 dimensions");
    assert_eq!(refused(&file(1, "'<i4'", "False", "(1,)", &[255; 4])), "id -1 at position 0 of row 0 is negative");
}

#[test]
fn damaged_files() {
    let whole = file(1, "'<i4'", "False", "(2, 3)", &[0; 24]);
    assert_eq!(refused(&whole[..whole.len() - 1]), "the array of shape [2, 3] and type `<i4` needs 24 bytes, but the file has 23");
    assert_eq!(refused(&whole[..40]), "not a readable .npy file: it is cut off in the header");
    assert_eq!(refused(b"PK"), "not a readable .npy file: it does not start with the magic of the format");
    assert_eq!(refused(b"\x93NUMPY\x09\x00\x00\x00"), "not a readable .npy file: its version is unknown, or it is cut off in the header");
    let huge = refused(&file(1, "'<i8'", "False", "(9223372036854775807, 9)", &[]));
    assert_eq!(huge, "the array of shape [9223372036854775807, 9] and type `<i8` needs more than memory bytes, but the file has 0");
    // Every cut of a good file is refused, none panics.
    assert!((0..whole.len()).all(|length| read(&whole[..length]).is_err()));
}
