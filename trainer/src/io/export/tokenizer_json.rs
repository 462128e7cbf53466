//! A tokenizer.bin as tokenizer.json, for the `tokenizers` library: the same ids for the same text.

use std::collections::HashMap;

use anyhow::{Context, anyhow, bail};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use crate::io::export::pieces::{Kind, Piece};

/// Writes tokenizer.json. `bos` is what is put in front of a text.
///
/// # Errors
/// Two tokens have the same text.
pub fn tokenizer_json(pieces: &[Piece], bos: &[u32]) -> anyhow::Result<String> {
    let mut vocab: HashMap<&str, u32> = HashMap::with_capacity(pieces.len());
    for (id, piece) in (0..).zip(pieces) {
        if let Some(first) = vocab.insert(&piece.text, id) {
            bail!(
                "tokens {first} and {id} are both {:?}, and tokenizer.json tells tokens apart by their text",
                piece.text
            );
        }
    }
    let merges = merges(pieces, &vocab);
    let name =
        |id: u32| pieces.get(id as usize).map(|piece| &piece.text).with_context(|| format!("there is no token {id}"));
    let bos: Vec<(&String, u32)> = bos.iter().map(|&id| Ok((name(id)?, id))).collect::<anyhow::Result<_>>()?;
    let special = pieces.iter().filter(|piece| matches!(piece.kind, Kind::Unknown | Kind::Control));
    let special: Vec<AddedToken> = special.map(|piece| AddedToken::from(piece.text.clone(), true)).collect();
    let ids: Vocab = vocab.iter().map(|(text, &id)| ((*text).to_owned(), id)).collect();
    let build = || -> tokenizers::Result<String> {
        let model = BPE::builder()
            .vocab_and_merges(ids, merges)
            .unk_token(name(0)?.clone())
            .fuse_unk(true)
            .byte_fallback(pieces.iter().any(|piece| piece.kind == Kind::Byte))
            .build()?;
        let mut tokenizer = Tokenizer::new(model);
        let normalizers = vec![Prepend::new("\u{2581}".into()).into(), Replace::new(" ", "\u{2581}")?.into()];
        tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
        let decoders = vec![
            Replace::new("\u{2581}", " ")?.into(),
            ByteFallback::new().into(),
            Fuse::new().into(),
            Strip::new(' ', 1, 0).into(),
        ];
        tokenizer.with_decoder(Some(Decoders::new(decoders)));
        if !bos.is_empty() {
            let names = bos.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ");
            let template = TemplateProcessing::builder()
                .try_single(format!("{names} $A"))?
                .try_pair(format!("{names} $A {names} $B"))?
                .special_tokens(bos.iter().map(|(name, id)| ((*name).clone(), *id)).collect::<Vec<_>>())
                .build()?;
            tokenizer.with_post_processor(Some(template));
        }
        tokenizer.add_special_tokens(special)?;
        tokenizer.to_string(true)
    };
    build().map_err(|e| anyhow!("tokenizer.json: {e}"))
}

/// The merges, the first to be done first. llama2.c merges any two pieces that together are a
/// piece: so every split of each piece into two pieces is listed, in the order of the scores.
fn merges(pieces: &[Piece], vocab: &HashMap<&str, u32>) -> Vec<(String, String)> {
    let is_text = |text: &str| vocab.get(text).is_some_and(|&id| pieces[id as usize].kind == Kind::Text);
    let mut merged: Vec<&Piece> = pieces.iter().filter(|piece| piece.kind == Kind::Text).collect();
    merged.sort_by(|a, b| b.score.total_cmp(&a.score)); // stable: equal scores by id
    let mut merges = Vec::new();
    for Piece { text, .. } in merged {
        for (at, _) in text.char_indices().skip(1).collect::<Vec<_>>().into_iter().rev() {
            let (left, right) = text.split_at(at);
            if is_text(left) && is_text(right) {
                merges.push((left.to_owned(), right.to_owned()));
            }
        }
    }
    merges
}

#[cfg(test)]
mod tests {
    use ::tests::shared;
    use infer_core::OwnedTokenizer;
    use serde::Deserialize;

    use super::*;
    use crate::io::export::pieces;

    #[derive(Deserialize)]
    struct Encoding {
        text: String,
    }

    /// The ids of tokenizer.json are those of tokenizer.bin, for every text of the golden ids.
    #[test]
    fn both_files_give_the_same_ids() {
        for (file, golden) in [
            ("data/tokenizers/llama2/tokenizer.bin", "llama2"),
            ("data/models/stories260K/tok512.bin", "tok512"),
            ("data/models/tok105/tok105.bin", "tok105"),
        ] {
            let Some(bytes) = shared::bytes(file) else { return };
            let ours = OwnedTokenizer::whole(&bytes[..]).unwrap();
            let pieces = pieces::read(&bytes, ours.get().vocab_size()).unwrap();
            let json = tokenizer_json(&pieces, &[infer_core::BOS]).unwrap();
            let theirs = Tokenizer::from_bytes(json).unwrap();
            let texts: Vec<Encoding> = shared::json_lines(&format!("golden/encodings/{golden}.jsonl")).unwrap();
            assert!(texts.len() > 10);
            // The library lets a text name a special token.
            for Encoding { text } in texts.into_iter().filter(|e| !e.text.contains("<s>")) {
                let ids = theirs.encode(&*text, true).unwrap();
                assert_eq!(ids.get_ids(), ours.encode(&text).unwrap(), "{golden}: {text:?}");
            }
        }
    }

    fn piece(text: &str, score: f32, kind: Kind) -> Piece {
        Piece { text: text.into(), score, kind }
    }

    #[test]
    fn scores_order_the_merges_and_special_tokens_never_merge() {
        let pieces = [
            piece("<unk>", 0.0, Kind::Unknown),
            piece("<s>", 0.0, Kind::Control),
            piece("</s>", 0.0, Kind::Control),
            piece("a", -9.0, Kind::Text),
            piece("b", -9.0, Kind::Text),
            piece("ab", -2.0, Kind::Text),
            piece("ba", -1.0, Kind::Text),
            piece("\u{2581}", -9.0, Kind::Text),
            piece("aa", -1e11, Kind::Control),
        ];
        let ids = |text: &str, bos: &[u32]| {
            let tokenizer = Tokenizer::from_bytes(tokenizer_json(&pieces, bos).unwrap()).unwrap();
            tokenizer.encode(text, true).unwrap().get_ids().to_vec()
        };
        assert_eq!(ids("aba", &[1]), [1, 7, 3, 6]);
        assert_eq!(ids("aba", &[]), [7, 3, 6]);
        assert_eq!(ids("b", &[1, 2]), [1, 2, 7, 4]);
        let vocab = (0..).zip(&pieces).map(|(id, piece)| (piece.text.as_str(), id)).collect();
        assert_eq!(merges(&pieces, &vocab), [("b", "a"), ("a", "b")].map(|(l, r)| (l.to_owned(), r.to_owned())));
    }

    #[test]
    fn tokens_of_the_same_text_are_refused() {
        let pieces = ["<unk>", "a", "b", "a"].map(|text| piece(text, 0.0, Kind::Text));
        let error = tokenizer_json(&pieces, &[]).unwrap_err().to_string();
        assert!(error.contains("tokens 1 and 3 are both \"a\""), "{error}");
    }
}
