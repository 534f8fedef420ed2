//! Documents from a string column of a Parquet file.

use std::sync::Arc;

use parquet::data_type::ByteArrayType;
use parquet::column::reader::get_typed_column_reader;
use parquet::basic::Type as Physical;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::error::{Error, Result};

/// Rows of the top-level column `column`, in order.
pub(super) fn read(bytes: Vec<u8>, column: &str) -> Result<Vec<String>> {
    let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).map_err(|e| damaged(&e))?;
    Ok(Vec::new())
}
