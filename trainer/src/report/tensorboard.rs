//! Writes event files of TensorBoard: records (TFRecord) of one protobuf message each. Two messages
//! and a frame are all it takes; the crates that write them need a protobuf compiler at build time
//! or old image libraries.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

/// The fields of tensorflow/core/util/event.proto that scalars need.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

/// The fields of tensorflow/core/framework/summary.proto that scalars need.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// A file that TensorBoard reads while it grows.
pub struct EventFile(File);

impl EventFile {
    /// Starts a new file in the folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(folder: &Path) -> io::Result<EventFile> {
        std::fs::create_dir_all(folder)?;
        let name = format!("events.out.tfevents.{:.0}.{}", seconds(), std::process::id());
        let mut file = EventFile(File::create(folder.join(name))?);
        file.write(&Event { file_version: Some("brain.Event:2".into()), ..Event::now(0) })?;
        Ok(file)
    }

    /// Adds the values of one step.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        let value = values.iter().map(|&(tag, value)| Value { tag: tag.into(), simple_value: value as f32 });
        let summary = Some(Summary { value: value.collect() });
        self.write(&Event { summary, ..Event::now(step) })
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        self.0.write_all(&record(&event.encode_to_vec()))
    }
}

impl Event {
    fn now(step: u64) -> Event {
        Event { wall_time: seconds(), step: step as i64, ..Event::default() }
    }
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// The bytes of a record: length, checksum of the length, data, checksum of the data.
fn record(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    [&len[..], &masked_crc(&len), data, &masked_crc(data)].concat()
}

/// TFRecord's checksum: CRC-32C, rotated and shifted so that it is not its own fixed point.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_those_that_tensorflow_writes() {
        // This is the first record of a file, at wall_time 1.0.
        let event = Event { wall_time: 1.0, file_version: Some("brain.Event:2".into()), ..Event::default() };
        let data = event.encode_to_vec();
        assert_eq!(data, b"\x09\0\0\0\0\0\0\xf0\x3f\x1a\x0dbrain.Event:2");
        let bytes = record(&data);
        assert_eq!(bytes[..8], 24u64.to_le_bytes());
        assert_eq!(bytes[8..12], [0xa3, 0x7f, 0x4b, 0x22]); // masked CRC of the length 24
        assert_eq!(bytes.len(), 8 + 4 + 24 + 4);
    }
}
