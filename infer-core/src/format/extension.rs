//! What llama2.c's header has no field for: rotary embeddings, the norm's epsilon, the special
//! tokens and the chat template. It stands in the padding of versions 1 and 2.

use super::bytes::{read_i32, write_fields};
use crate::config::Config;
use crate::error::Error;
use crate::rope::{Rope, RopeScaling};
use crate::tokenizer::{BOS, EOS};

/// Marks the extension, at byte [`AT`]: "llmx".
const MAGIC: i32 = i32::from_le_bytes(*b"llmx");
/// The only version of it.
const VERSION: i32 = 1;
const AT: usize = 48;
/// The most ids that are put in front of a text.
const MAX_BOS: usize = 4;
/// The most ids that end a text.
const MAX_EOS: usize = 8;
/// Bytes of a template's name.
const NAME_BYTES: usize = 32;

/// The tokens that begin and end a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SpecialTokens {
    bos: [u32; MAX_BOS],
    n_bos: u8,
    eos: [u32; MAX_EOS],
    n_eos: u8,
}

impl SpecialTokens {
    /// Those of llama2.c: [`BOS`] in front, [`EOS`] at the end.
    pub const LLAMA2: SpecialTokens =
        SpecialTokens { bos: [BOS, 0, 0, 0], n_bos: 1, eos: [EOS, 0, 0, 0, 0, 0, 0, 0], n_eos: 1 };

    /// `bos` stands in front of every text, up to 4 tokens and maybe none; any of `eos`, up to 8,
    /// ends one.
    ///
    /// # Errors
    /// [`Error::Setting`] for more tokens than that.
    pub const fn new(bos: &[u32], eos: &[u32]) -> Result<SpecialTokens, Error> {
        if bos.len() > MAX_BOS {
            let value = bos.len() as f64;
            return Err(Error::Setting { name: "number of BOS tokens", value, rule: "it must be at most 4" });
        }
        if eos.len() > MAX_EOS {
            let value = eos.len() as f64;
            return Err(Error::Setting { name: "number of EOS tokens", value, rule: "it must be at most 8" });
        }
        let mut new =
            SpecialTokens { bos: [0; MAX_BOS], n_bos: bos.len() as u8, eos: [0; MAX_EOS], n_eos: eos.len() as u8 };
        let mut i = 0;
        while i < MAX_EOS {
            if i < bos.len() && i < MAX_BOS {
                new.bos[i] = bos[i];
            }
            if i < eos.len() {
                new.eos[i] = eos[i];
            }
            i += 1;
        }
        Ok(new)
    }

    /// The tokens in front of a text.
    pub const fn bos(&self) -> &[u32] {
        match self.bos.split_at_checked(self.n_bos as usize) {
            Some((bos, _)) => bos,
            None => &self.bos,
        }
    }

    /// The tokens that end a text.
    pub const fn eos(&self) -> &[u32] {
        match self.eos.split_at_checked(self.n_eos as usize) {
            Some((eos, _)) => eos,
            None => &self.eos,
        }
    }

    const fn is_plain(&self) -> bool {
        matches!((self.bos(), self.eos()), (&[BOS], &[EOS]))
    }
}

/// The name of the chat template that a model was taught with, empty if there is none. This crate
/// only carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TemplateName {
    bytes: [u8; NAME_BYTES],
    len: u8,
}

impl TemplateName {
    /// No template.
    pub const NONE: TemplateName = TemplateName { bytes: [0; NAME_BYTES], len: 0 };

    /// A name of up to 32 bytes.
    ///
    /// # Errors
    /// [`Error::Setting`] for a longer one, and for one with a zero byte.
    pub const fn new(name: &str) -> Result<TemplateName, Error> {
        let name = name.as_bytes();
        if name.len() > NAME_BYTES {
            let value = name.len() as f64;
            return Err(Error::Setting { name: "bytes of the template's name", value, rule: "it must be at most 32" });
        }
        let mut new = TemplateName { bytes: [0; NAME_BYTES], len: name.len() as u8 };
        let mut i = 0;
        while i < name.len() && i < NAME_BYTES {
            if name[i] == 0 {
                let rule = "names have no zero byte";
                return Err(Error::Setting { name: "a byte of the template's name", value: 0.0, rule });
            }
            new.bytes[i] = name[i];
            i += 1;
        }
        Ok(new)
    }

    /// The name.
    pub const fn as_str(&self) -> &str {
        let bytes = match self.bytes.split_at_checked(self.len as usize) {
            Some((name, _)) => name,
            None => &self.bytes,
        };
        match core::str::from_utf8(bytes) {
            Ok(name) => name,
            Err(_) => "",
        }
    }
}

/// What the extension says.
#[derive(Clone, Copy)]
pub(super) struct Extension {
    pub rope: Rope,
    pub norm_eps: f32,
    pub tokens: SpecialTokens,
    pub template: TemplateName,
}

impl Extension {
    /// llama2.c's own fields say all of this.
    pub const fn is_plain(&self) -> bool {
        matches!(self.rope.scaling, RopeScaling::None)
            && self.rope.theta == Rope::LLAMA2.theta
            && self.norm_eps == Config::NORM_EPS
            && self.tokens.is_plain()
            && self.template.len == 0
    }
}

/// Reads the extension, if there is one.
pub(super) const fn read(bytes: &[u8], vocab_size: usize) -> Result<Option<Extension>, Error> {
    if word(bytes, 0) != MAGIC {
        return Ok(None);
    }
    if word(bytes, 1) != VERSION {
        let value = word(bytes, 1) as i64;
        return Err(Error::Header { field: "version of the extension", value, rule: "this program knows version 1" });
    }
    let factor = float(bytes, 5);
    let scaling = match word(bytes, 4) {
        0 => RopeScaling::None,
        1 => RopeScaling::Linear { factor },
        2 => RopeScaling::Llama3 {
            factor,
            low_freq_factor: float(bytes, 6),
            high_freq_factor: float(bytes, 7),
            original_seq_len: word(bytes, 8) as u32 as usize,
        },
        value => {
            let value = value as i64;
            return Err(Error::Header { field: "rope scaling", value, rule: "it must be 0, 1 or 2" });
        }
    };
    let tokens = match tokens(bytes, vocab_size) {
        Ok(tokens) => tokens,
        Err(e) => return Err(e),
    };
    let template = match template(bytes) {
        Ok(template) => template,
        Err(e) => return Err(e),
    };
    let rope = Rope { theta: float(bytes, 2), scaling };
    Ok(Some(Extension { rope, norm_eps: float(bytes, 3), tokens, template }))
}

const fn tokens(bytes: &[u8], vocab_size: usize) -> Result<SpecialTokens, Error> {
    let (n_bos, n_eos) = (word(bytes, 9), word(bytes, 10));
    if n_bos < 0 || n_bos as usize > MAX_BOS {
        return Err(Error::Header { field: "number of BOS tokens", value: n_bos as i64, rule: "it must be 0 to 4" });
    }
    if n_eos < 0 || n_eos as usize > MAX_EOS {
        return Err(Error::Header { field: "number of EOS tokens", value: n_eos as i64, rule: "it must be 0 to 8" });
    }
    let mut tokens = SpecialTokens { bos: [0; MAX_BOS], n_bos: n_bos as u8, eos: [0; MAX_EOS], n_eos: n_eos as u8 };
    let mut i = 0;
    while i < MAX_BOS + MAX_EOS {
        let token = word(bytes, 11 + i) as u32;
        let used = if i < MAX_BOS { i < n_bos as usize } else { i - MAX_BOS < n_eos as usize };
        if used && token as usize >= vocab_size {
            return Err(Error::Token { token, vocab_size });
        }
        // The comparisons always hold, and spare bounds checks.
        if i < MAX_BOS {
            tokens.bos[i] = token;
        } else if i - MAX_BOS < MAX_EOS {
            tokens.eos[i - MAX_BOS] = token;
        }
        i += 1;
    }
    Ok(tokens)
}

const fn template(bytes: &[u8]) -> Result<TemplateName, Error> {
    let mut template = TemplateName::NONE;
    let mut i = 0;
    while i < NAME_BYTES {
        let byte = (word(bytes, 23 + i / 4) >> (8 * (i % 4))) as u8;
        template.bytes[i] = byte;
        if byte != 0 {
            template.len = i as u8 + 1;
        }
        i += 1;
    }
    // A byte 0 inside a name would make it another one for readers that end there.
    let mut i = 0;
    while i < template.len as usize && i < NAME_BYTES {
        if template.bytes[i] == 0 {
            return Err(name_error());
        }
        i += 1;
    }
    match core::str::from_utf8(&template.bytes) {
        Ok(_) => Ok(template),
        Err(_) => Err(name_error()),
    }
}

const fn name_error() -> Error {
    Error::Header { field: "name of the chat template", value: 0, rule: "it must be UTF-8, and zeros behind it" }
}

/// Writes the extension into a header.
pub(super) const fn write(extension: &Extension, out: &mut [u8]) {
    let Extension { rope: Rope { theta, scaling }, norm_eps, tokens, template } = *extension;
    let (kind, factor, low, high, original) = match scaling {
        RopeScaling::None => (0, 0.0, 0.0, 0.0, 0),
        RopeScaling::Linear { factor } => (1, factor, 0.0, 0.0, 0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq_len } => {
            (2, factor, low_freq_factor, high_freq_factor, original_seq_len)
        }
    };
    let SpecialTokens { bos, n_bos, eos, n_eos } = tokens;
    let fields = [
        MAGIC,
        VERSION,
        theta.to_bits() as i32,
        norm_eps.to_bits() as i32,
        kind,
        factor.to_bits() as i32,
        low.to_bits() as i32,
        high.to_bits() as i32,
        original as i32,
        n_bos as i32,
        n_eos as i32,
    ];
    write_fields(out, AT, &fields);
    let mut i = 0;
    while i < MAX_BOS {
        write_fields(out, AT + 4 * (11 + i), &[bos[i] as i32]);
        i += 1;
    }
    let mut i = 0;
    while i < MAX_EOS {
        write_fields(out, AT + 4 * (11 + MAX_BOS + i), &[eos[i] as i32]);
        i += 1;
    }
    let mut i = 0;
    while i < NAME_BYTES {
        if AT + 4 * 23 + i < out.len() {
            out[AT + 4 * 23 + i] = template.bytes[i];
        }
        i += 1;
    }
}

/// Word `i` of the extension.
const fn word(bytes: &[u8], i: usize) -> i32 {
    match read_i32(bytes, AT + 4 * i) {
        Some(word) => word,
        None => 0,
    }
}

const fn float(bytes: &[u8], i: usize) -> f32 {
    f32::from_bits(word(bytes, i) as u32)
}
