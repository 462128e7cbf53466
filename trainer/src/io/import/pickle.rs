//! The part of Python's pickle format that checkpoints of PyTorch consist of. A pickle is a program
//! for a small machine; this one builds values and calls nothing. Names of functions and classes
//! are accepted from a list, and a file that asks for another one is refused.
//!
//! candle's reader of pickles copies a value each time that it is named, so that a file of a
//! thousand bytes can ask for any amount of memory. Here a value is made once and has a number.

use std::collections::HashMap;

use anyhow::{Context, bail, ensure};

use crate::io::import::tensors::shown;

/// Longest pickle that is read, in bytes. Each byte of it makes one value at most. The checkpoints
/// of the largest models have less than a megabyte.
pub const MAX_PICKLE: u64 = 2 << 20;

/// The functions and classes that weights need.
const ALLOWED: [(&str, &str); 13] = [
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "FloatStorage"),
    ("torch", "HalfStorage"),
    ("torch", "BFloat16Storage"),
    ("torch", "DoubleStorage"),
    ("torch", "LongStorage"),
    ("torch", "IntStorage"),
    ("torch", "ShortStorage"),
    ("torch", "CharStorage"),
    ("torch", "ByteStorage"),
    ("torch", "BoolStorage"),
];

/// The number of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(u32);

/// A value. It contains others by their numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    /// A function or class of the list.
    Global(&'static str),
    /// A tuple or a list.
    List(Vec<Id>),
    /// Keys and values in turn.
    Dict(Vec<Id>),
    /// A call of a function with its arguments.
    Call(Id, Id),
    /// What a storage is called in the file.
    Storage(Id),
}

/// The values of a pickle.
#[derive(Debug)]
pub struct Values<'a> {
    values: Vec<Value<'a>>,
    /// The value that the pickle stands for.
    pub root: Id,
}

impl<'a> Values<'a> {
    /// The value of this number.
    pub fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    /// The elements of a list or tuple.
    pub fn list(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::List(elements) => Some(elements),
            _ => None,
        }
    }

    /// The keys and values of a dictionary whose keys are texts; others are left out.
    pub fn dict(&self, id: Id) -> Option<impl Iterator<Item = (&'a str, Id)> + '_> {
        let Value::Dict(elements) = self.get(id) else { return None };
        Some(elements.chunks_exact(2).filter_map(|pair| Some((self.text(pair[0])?, pair[1]))))
    }

    /// The value of a key.
    pub fn field(&self, dict: Id, key: &str) -> Option<Id> {
        self.dict(dict)?.find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// A text.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number that is not negative.
    pub fn size(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Value::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }
}

/// Runs a pickle.
///
/// # Errors
/// It is damaged, uses a part of the format that checkpoints of PyTorch do not, or names a function
/// or class that weights do not need.
pub fn read(bytes: &[u8]) -> anyhow::Result<Values<'_>> {
    let mut machine =
        Machine { rest: bytes, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        let at = bytes.len() - machine.rest.len();
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok(Values { values: machine.values, root }),
            Err(e) => return Err(e.context(format!("its pickle, at byte {at}"))),
        }
    }
}

struct Machine<'a> {
    rest: &'a [u8],
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Obeys one instruction. Returns the result after the last one.
    fn step(&mut self) -> anyhow::Result<Option<Id>> {
        match self.byte()? {
            0x80 => _ = self.byte()?, // version
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.number::<1>(|b| b[0].into())?,
            b'M' => self.number(|b| u16::from_le_bytes(b).into())?,
            b'J' => self.number(|b| i32::from_le_bytes(b).into())?,
            0x8a => self.long()?,
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(value));
            }
            b'X' => {
                let len = u32::from_le_bytes(self.array()?);
                let text = std::str::from_utf8(self.take(len as usize)?).context("a text is no UTF-8")?;
                self.push(Value::Text(text));
            }
            b'c' => self.global()?,
            b')' | b']' => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' | b'l' => {
                let elements = self.pop_to_mark()?;
                self.push(Value::List(elements));
            }
            b'd' => {
                let elements = self.pop_to_mark()?;
                self.push(Value::Dict(elements));
            }
            b'a' => self.extend(1, false)?,
            b's' => self.extend(2, true)?,
            b'e' => self.extend_to_mark(false)?,
            b'u' => self.extend_to_mark(true)?,
            b'q' => {
                let key = self.byte()?;
                self.put(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.put(key)?;
            }
            b'h' => {
                let key = self.byte()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            b'Q' => {
                let name = self.pop()?;
                self.push(Value::Storage(name));
            }
            b'R' => self.call()?,
            b'b' => _ = self.pop()?, // attributes of a dictionary, which weights do not need
            code => bail!("instruction {code:#04x} is none that checkpoints of PyTorch have"),
        }
        Ok(None)
    }

    fn take(&mut self, n: usize) -> anyhow::Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n).context("it ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn byte(&mut self) -> anyhow::Result<u8> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(Id(self.values.len() as u32)); // fewer values than bytes
        self.values.push(value);
    }

    fn pop(&mut self) -> anyhow::Result<Id> {
        ensure!(self.marks.last().is_none_or(|&mark| mark < self.stack.len()), "a value is missing after a mark");
        self.stack.pop().context("a value is missing")
    }

    fn pop_to_mark(&mut self) -> anyhow::Result<Vec<Id>> {
        let mark = self.marks.pop().context("a mark is missing")?;
        ensure!(mark <= self.stack.len(), "a value is missing after a mark");
        Ok(self.stack.split_off(mark))
    }

    fn number<const N: usize>(&mut self, value: impl FnOnce([u8; N]) -> i64) -> anyhow::Result<()> {
        let value = value(self.array()?);
        self.push(Value::Int(value));
        Ok(())
    }

    /// A whole number of up to 8 bytes.
    fn long(&mut self) -> anyhow::Result<()> {
        let len = self.byte()?;
        ensure!(len <= 8, "a number has {len} bytes: 8 are the most");
        let bytes = self.take(len.into())?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn line(&mut self) -> anyhow::Result<&'a str> {
        let end = memchr::memchr(b'\n', self.rest).context("it ends inside a name")?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).context("a name is no UTF-8")
    }

    fn global(&mut self) -> anyhow::Result<()> {
        let (module, name) = (self.line()?, self.line()?);
        let Some((_, name)) = ALLOWED.iter().find(|allowed| **allowed == (module, name)) else {
            bail!(
                "it asks for {}.{}, which weights do not need: the file is refused, and nothing of it was run",
                shown(module),
                shown(name)
            );
        };
        self.push(Value::Global(name));
        Ok(())
    }

    fn tuple(&mut self, n: usize) -> anyhow::Result<()> {
        let elements = self.pop_some(n)?;
        self.push(Value::List(elements));
        Ok(())
    }

    /// The last `n` values, which lie above the last mark.
    fn pop_some(&mut self, n: usize) -> anyhow::Result<Vec<Id>> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        let at = self.stack.len().checked_sub(n).filter(|at| *at >= bottom).context("a value is missing")?;
        Ok(self.stack.split_off(at))
    }

    fn extend(&mut self, n: usize, dict: bool) -> anyhow::Result<()> {
        let elements = self.pop_some(n)?;
        self.append(elements, dict)
    }

    fn extend_to_mark(&mut self, dict: bool) -> anyhow::Result<()> {
        let elements = self.pop_to_mark()?;
        self.append(elements, dict)
    }

    /// Appends to the list or dictionary on top of the stack.
    fn append(&mut self, elements: Vec<Id>, dict: bool) -> anyhow::Result<()> {
        let target = self.stack.last().context("a value is missing")?;
        match (&mut self.values[target.0 as usize], dict) {
            (Value::List(there), false) => there.extend(elements),
            (Value::Dict(there), true) => there.extend(elements),
            _ => bail!("elements are added to what is no list or dictionary"),
        }
        Ok(())
    }

    fn put(&mut self, key: u32) -> anyhow::Result<()> {
        let id = *self.stack.last().context("a value is missing")?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> anyhow::Result<()> {
        let id = *self.memo.get(&key).with_context(|| format!("value {key} was never made"))?;
        self.stack.push(id);
        Ok(())
    }

    /// Notes down a call. Only an empty OrderedDict is made here; its class is a dictionary.
    fn call(&mut self) -> anyhow::Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let value = match &self.values[function.0 as usize] {
            Value::Global("OrderedDict") => Value::Dict(Vec::new()),
            _ => Value::Call(function, arguments),
        };
        self.push(value);
        Ok(())
    }
}
