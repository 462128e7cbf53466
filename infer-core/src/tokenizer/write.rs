//! Writes tokenizer files: every exporter goes through [`write`].

use std::io;

/// Writes a tokenizer.bin: score and bytes of each entry, in the order of their tokens.
///
/// `max_token_length` is the length of the longest piece in bytes, which llama2.c sizes a buffer
/// by; this crate does not use it.
///
/// ```
/// use infer_core::tokenizer::{count_entries, write};
///
/// let mut file = Vec::new();
/// write(&mut file, 6, [(0.0, "<unk>"), (0.0, "\n<s>\n"), (0.0, "\n</s>\n"), (-1.0, "a")])?;
/// assert_eq!(count_entries(&file), Ok(4));
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Those of the writer, and [`io::ErrorKind::InvalidInput`] for a piece of 4 GB or more; the output
/// is then incomplete.
pub fn write<P: AsRef<[u8]>>(
    out: &mut impl io::Write,
    max_token_length: u32,
    entries: impl IntoIterator<Item = (f32, P)>,
) -> io::Result<()> {
    out.write_all(&max_token_length.to_le_bytes())?;
    for (score, piece) in entries {
        let piece = piece.as_ref();
        let length = u32::try_from(piece.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        out.write_all(&score.to_le_bytes())?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(piece)?;
    }
    Ok(())
}
