//! Values of the metadata of a GGUF file.

/// A value of one of the types that a model's metadata needs.
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    String(String),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Strings(Vec<String>),
}

/// Numbers of the types.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

impl Value {
    /// Appends the type's number and the value.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Value::U32(v) => {
                put_u32(out, U32);
                put_u32(out, *v);
            }
            Value::F32(v) => {
                put_u32(out, F32);
                out.extend(v.to_le_bytes());
            }
            Value::Bool(v) => {
                put_u32(out, BOOL);
                out.push(u8::from(*v));
            }
            Value::String(v) => {
                put_u32(out, STRING);
                put_string(out, v);
            }
            Value::I32s(v) => put_array(out, I32, v, |out, v| out.extend(v.to_le_bytes())),
            Value::F32s(v) => put_array(out, F32, v, |out, v| out.extend(v.to_le_bytes())),
            Value::Strings(v) => put_array(out, STRING, v, |out, v| put_string(out, v)),
        }
    }
}

fn put_array<T>(out: &mut Vec<u8>, kind: u32, values: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    put_u32(out, ARRAY);
    put_u32(out, kind);
    out.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| put(out, value));
}

/// Appends a string with its length.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_u32(out: &mut Vec<u8>, v: u32) {
    out.extend(v.to_le_bytes());
}
