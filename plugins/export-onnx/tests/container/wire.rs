//! Protocol buffers as they lie in a file: numbered fields, each a varint, four or eight bytes, or a stretch of bytes.
//!
//! Source: protobuf.dev, "Encoding".

pub(crate) struct Wire<'a>(Vec<(u32, Field<'a>)>);

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    /// The fields of a message, all of which have to be among `known`.
    pub(crate) fn parse(mut bytes: &'a [u8], known: &[u32]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let number = (tag >> 3) as u32;
            assert!(known.contains(&number), "field {number}");
            let field = match tag & 7 {
                0 => Field::Number(varint(&mut bytes)),
                1 => Field::Bytes(take(&mut bytes, 8)),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    Field::Bytes(take(&mut bytes, length))
                }
                5 => Field::Bytes(take(&mut bytes, 4)),
                kind => panic!("wire type {kind}"),
            };
            fields.push((number, field));
        }
        Self(fields)
    }

    /// Every stretch of bytes of a field, in order.
    pub(crate) fn each(&self, field: u32) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(n, _)| *n == field).map(|(n, f)| match f {
            Field::Bytes(bytes) => *bytes,
            Field::Number(_) => panic!("field {n} is a number"),
        })
    }

    /// Those of a field that is there once, or none where it is not there.
    pub(crate) fn bytes(&self, field: u32) -> &'a [u8] {
        let mut all = self.each(field);
        let first = all.next().unwrap_or_default();
        assert!(all.next().is_none(), "field {field} is there twice");
        first
    }

    pub(crate) fn text(&self, field: u32) -> String {
        String::from_utf8(self.bytes(field).to_vec()).unwrap()
    }

    /// A number, 0 where the field is not there.
    pub(crate) fn int(&self, field: u32) -> i64 {
        let numbers = self.ints(field);
        assert!(numbers.len() <= 1, "field {field} is there twice");
        numbers.first().copied().unwrap_or_default()
    }

    /// All numbers of a field, in a stretch or one by one.
    pub(crate) fn ints(&self, field: u32) -> Vec<i64> {
        let mut out = Vec::new();
        for (_, f) in self.0.iter().filter(|(n, _)| *n == field) {
            match *f {
                Field::Number(n) => out.push(n as i64),
                Field::Bytes(mut bytes) => {
                    while !bytes.is_empty() {
                        out.push(varint(&mut bytes) as i64);
                    }
                }
            }
        }
        out
    }

    pub(crate) fn has(&self, field: u32) -> bool {
        self.0.iter().any(|(n, _)| *n == field)
    }
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (first, rest) = bytes.split_at(n);
    *bytes = rest;
    first
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return value;
        }
    }
}
