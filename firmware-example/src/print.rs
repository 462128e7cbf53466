//! Text over the serial line, without formatting code.

use infer_core::Error;

use crate::board;
use crate::explain::explain;

/// Sends a text.
pub fn text(text: &str) {
    text.bytes().for_each(board::write);
}

/// Sends the bytes of a model's text. Bytes that could drive a terminal become dots.
pub fn piece(bytes: &[u8]) {
    bytes.iter().for_each(|&byte| {
        let harmless = byte >= 0x80 || matches!(byte, b' '..=b'~' | b'\n');
        board::write(if harmless { byte } else { b'.' });
    });
}

/// Sends a number in decimal digits.
pub fn number(n: u64) {
    if n >= 10 {
        number(n / 10);
    }
    board::write(b'0' + (n % 10) as u8);
}

/// Sends 16 hexadecimal digits.
fn hash(value: u64) {
    for byte in value.to_be_bytes() {
        for digit in [byte >> 4, byte & 15] {
            board::write(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
        }
    }
}

/// Sends a hash of logits and whether it is the host's; `None` if it is not.
pub fn logits(chip: u64, host: u64) -> Option<()> {
    text("\nlogits ");
    hash(chip);
    text(if chip == host { ", as on the host\n" } else { ", NOT as on the host\n" });
    (chip == host).then_some(())
}

/// Sends an error in words.
pub fn error(error: &Error) {
    let (message, value) = explain(error);
    text("\nerror: ");
    text(message);
    if let Some(value) = value {
        text(" (");
        if value < 0 {
            text("-");
        }
        number(value.unsigned_abs());
        text(")");
    }
    text("\n");
}
