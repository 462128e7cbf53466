//! Reads stories in JSON: an array, or one value after the other. A story is a string, or an object
//! with a field `story` (or `text`, where there is no `story`). `null` stands for no story.

use std::fmt;
use std::io::{self, BufRead};

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A function that receives each story, `None` for null.
pub type Each<'a> = &'a mut dyn FnMut(Option<&str>) -> io::Result<()>;

/// Hands over every story of a file.
///
/// # Errors
/// The file is no JSON, a value is no story, or `each` fails.
pub fn read(mut file: impl BufRead, each: Each<'_>) -> anyhow::Result<()> {
    if file.fill_buf()?.starts_with("\u{feff}".as_bytes()) {
        file.consume("\u{feff}".len());
    }
    let is_array = file.fill_buf()?.trim_ascii_start().starts_with(b"[");
    let mut json = serde_json::Deserializer::from_reader(file);
    if is_array {
        Array(each).deserialize(&mut json)?;
        return Ok(json.end()?);
    }
    for story in json.into_iter::<Story>() {
        each(story?.0.as_deref())?;
    }
    Ok(())
}

struct Array<'a>(Each<'a>);

impl<'de> DeserializeSeed<'de> for Array<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Array<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of stories")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while let Some(Story(story)) = array.next_element()? {
            (self.0)(story.as_deref()).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

struct Story(Option<String>);

impl<'de> Deserialize<'de> for Story {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Story, D::Error> {
        json.deserialize_any(StoryVisitor)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Story,
    Text,
    #[serde(other)]
    Other,
}

struct StoryVisitor;

impl<'de> Visitor<'de> for StoryVisitor {
    type Value = Story;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a story: a string, or an object with a field `story` (or `text`)")
    }

    fn visit_unit<E: Error>(self) -> Result<Story, E> {
        Ok(Story(None))
    }

    fn visit_str<E: Error>(self, story: &str) -> Result<Story, E> {
        Ok(Story(Some(story.into())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Story, A::Error> {
        let (mut story, mut text, mut found) = (None, None, false);
        while let Some(field) = object.next_key()? {
            match field {
                Field::Story => story = object.next_value()?,
                Field::Text => text = object.next_value()?,
                Field::Other => _ = object.next_value::<IgnoredAny>()?,
            }
            found |= !matches!(field, Field::Other);
        }
        if found { Ok(Story(story.or(text))) } else { Err(A::Error::custom("missing field `story` (or `text`)")) }
    }
}
