//! Text over the serial line, without formatting code.

use crate::board;

/// Sends a text.
pub fn text(text: &str) {
    text.bytes().for_each(board::write);
}

/// Sends the bytes of a model's text: those that could drive a terminal become dots.
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
pub fn hash(value: u64) {
    for byte in value.to_be_bytes() {
        for digit in [byte >> 4, byte & 15] {
            board::write(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
        }
    }
}
