//! Sizes on the command line: `8GiB`, `900MiB`, or bytes.

use bytesize::ByteSize;

/// Reads a size such as `8GiB`, `1.5 GiB`, `900MB` or `4096`.
///
/// # Errors
/// When it is none, is negative, or does not fit 64 bits.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    // Plain bytes are read here: through a float, as units are, large numbers lose their last digits.
    if let Ok(bytes) = trimmed.parse() {
        return Ok(bytes);
    }
    let starts_well = trimmed.starts_with(|first: char| first.is_ascii_digit());
    match trimmed.parse::<ByteSize>() {
        Ok(size) if starts_well && size.as_u64() < u64::MAX => Ok(size.as_u64()),
        _ => Err(format!("`{text}` is no size: try 8GiB, 900MiB or bytes")),
    }
}
