//! Little-endian integers in headers.

/// The i32 at a byte offset, `None` past the end.
pub(crate) const fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    match bytes.split_at_checked(at) {
        Some((_, [a, b, c, d, ..])) => Some(i32::from_le_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// Writes i32 from a byte offset on, as far as there is room.
pub(super) const fn write_fields(out: &mut [u8], at: usize, fields: &[i32]) {
    let mut i = 0;
    while i < fields.len() {
        let bytes = fields[i].to_le_bytes();
        let mut j = 0;
        while j < 4 {
            if at + 4 * i + j < out.len() {
                out[at + 4 * i + j] = bytes[j];
            }
            j += 1;
        }
        i += 1;
    }
}
