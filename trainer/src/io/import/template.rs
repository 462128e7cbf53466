//! The name of a chat template: one of those that infer-text has built in if both write down the
//! same tokens, and "jinja" for others, which lie beside the model as they are.

use infer_core::format::Header;
use infer_text::{BESIDE, Message, Template, TextTokenizer};

use crate::io::vocabulary::Vocabulary;

/// The name of a template in Jinja.
///
/// # Errors
/// The template has a mistake, or the vocabulary cannot be read.
pub fn name(source: &str, vocabulary: Option<&Vocabulary>, header: &Header) -> anyhow::Result<&'static str> {
    let template = Template::jinja(source, None, None)?;
    let Some(tokenizer) = vocabulary.map(|vocabulary| tokenizer(vocabulary, header)).transpose()? else {
        return Ok(BESIDE);
    };
    let same = |name: &&str| Template::named(name).is_ok_and(|named| write_the_same(&named, &template, &tokenizer));
    Ok(["llama2", "chatml", "llama3"].into_iter().find(same).unwrap_or(BESIDE))
}

/// The reader of a vocabulary.
///
/// # Errors
/// It has a part that infer-text does not know.
pub fn tokenizer(vocabulary: &Vocabulary, header: &Header) -> anyhow::Result<TextTokenizer> {
    match vocabulary {
        Vocabulary::Bin(bytes) => TextTokenizer::from_bin(bytes.clone(), header),
        Vocabulary::Json(bytes) => TextTokenizer::from_json(bytes, header),
    }
}

/// Whether both templates write down sample conversations as the same tokens.
fn write_the_same(a: &Template, b: &Template, tokenizer: &TextTokenizer) -> bool {
    let [system, user] = [Message::new("system", "Be kind."), Message::new("user", " Hello,\nworld! ")];
    let answer = Message::new("assistant", " 1 + 1 = 2. ");
    let user = || user.clone();
    let conversations = [
        vec![user()],
        vec![system.clone(), user()],
        vec![user(), answer.clone(), user()],
        vec![system, user(), answer.clone(), user(), answer],
    ];
    conversations.iter().all(|conversation| {
        let reply = conversation.last().is_some_and(|last| last.role == "user");
        let written = [a, b].map(|template| template.render(tokenizer, conversation, reply));
        matches!(written, [Ok(ref a), Ok(ref b)] if a.tokens == b.tokens)
    })
}
