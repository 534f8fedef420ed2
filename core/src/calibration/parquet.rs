//! Documents from a string column of a Parquet file.

use std::path::Path;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use crate::error::{Error, Result};

/// The first `limit` rows of the top-level column `column`, in order. Only that column is decoded.
pub(super) fn read(path: &Path, column: &str, limit: usize) -> Result<Vec<String>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let schema = reader.metadata().file_metadata().schema();
    let Some(field) = schema.get_fields().iter().find(|field| field.name() == column) else {
        let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
        return Err(Error::input("data::no-column", format!("no column `{column}`; the columns are: {}", names.join(", ")))
            .hint("name the column with `text-column`"));
    };
    let projection = Type::group_type_builder(schema.name()).with_fields(vec![Arc::clone(field)]).build().map_err(damaged)?;
    let rows = reader.get_row_iter(Some(projection)).map_err(damaged)?;
    rows.take(limit)
        .enumerate()
        .map(|(index, row)| match row.map_err(damaged)?.into_columns().into_iter().next() {
            Some((_, Field::Str(text))) => Ok(text),
            Some((_, Field::Bytes(bytes))) => String::from_utf8(bytes.data().to_vec()).map_err(|_| not_text(column, index)),
            _ => Err(not_text(column, index)),
        })
        .collect()
}

fn not_text(column: &str, row: usize) -> Error {
    Error::input("data::not-text", format!("row {row} of the column `{column}` is not a string"))
        .hint("name the text column with `text-column`")
}

fn damaged(source: ParquetError) -> Error {
    Error::input("data::parquet", format!("not a readable parquet file: {source}")).with_source(source)
}

#[cfg(test)]
mod tests {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::calibration::{Corpus, DataFile, read_corpus};

    fn written(name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        let schema = Arc::new(parse_message_type("message m { required int64 id; required binary text (UTF8); }").unwrap());
        let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
        for group in [["one", "zwei ü"], ["", "vier"]] {
            let mut row_group = writer.next_row_group().unwrap();
            let mut ids = row_group.next_column().unwrap().unwrap();
            ids.typed::<Int64Type>().write_batch(&[1, 2], None, None).unwrap();
            ids.close().unwrap();
            let mut texts = row_group.next_column().unwrap().unwrap();
            texts.typed::<ByteArrayType>().write_batch(&group.map(ByteArray::from), None, None).unwrap();
            texts.close().unwrap();
            row_group.close().unwrap();
        }
        writer.close().unwrap();
        (dir, path)
    }

    #[test]
    fn documents_come_in_order_from_every_row_group() {
        let (_dir, path) = written("a.parquet");
        let expected = ["one", "zwei ü", "", "vier"].map(str::to_owned).to_vec();
        assert_eq!(read_corpus(&path, "text", None).unwrap(), Corpus::Documents(expected));
        let part = DataFile { documents: Some(3), join: Some("\n\n"), ..DataFile::local(&path, None) };
        assert_eq!(part.read(None).unwrap(), Corpus::Documents(vec!["one\n\nzwei ü\n\n".to_owned()]));
    }

    #[test]
    fn errors_name_the_column_and_the_file() {
        let (dir, path) = written("a.parquet");
        let error = read_corpus(&path, "content", None).unwrap_err().to_string();
        assert!(error.ends_with("a.parquet`: no column `content`; the columns are: id, text"), "{error}");
        let error = read_corpus(&path, "id", None).unwrap_err().to_string();
        assert!(error.ends_with("a.parquet`: row 0 of the column `id` is not a string"), "{error}");
        let cut = dir.path().join("cut.parquet");
        std::fs::write(&cut, &std::fs::read(&path).unwrap()[..40]).unwrap();
        let error = read_corpus(&cut, "text", None).unwrap_err().to_string();
        assert!(error.contains("cut.parquet`: not a readable parquet file: "), "{error}");
    }
}
