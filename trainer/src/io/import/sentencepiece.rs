//! tokenizer.model: a vocabulary of SentencePiece.

use anyhow::{Context, bail, ensure};
use sentencepiece_model::{ModelType, SentencePieceModel, Type};

use crate::io::import::vocabulary::{Kind, Pieces, Words, scored};

/// Longest file that is read, in bytes; Gemma's has 4.2 MB.
pub const MAX_MODEL: u64 = 5 << 20;

/// Reads a file.
///
/// # Errors
/// It is damaged, or of a kind that tokenizer.bin cannot carry.
pub fn read(bytes: &[u8]) -> anyhow::Result<Words> {
    let model = SentencePieceModel::from_slice(bytes).context("it is no model of SentencePiece, or damaged")?;
    let trainer = model.trainer().context("it has no trainer_spec: it is no model of SentencePiece")?;
    let kind = trainer.model_type();
    ensure!(kind == ModelType::Bpe, "its model_type is {kind:?}: tokenizer.bin carries byte-pair encoding (BPE)");
    if let Some(normalizer) = model.normalizer() {
        ensure!(
            normalizer.add_dummy_prefix(),
            "its add_dummy_prefix is false, and llama2.c puts a space before every text"
        );
    }
    let pieces = model.pieces().iter().map(|piece| {
        let kind = match piece.r#type() {
            Type::Normal => Kind::Text,
            Type::Byte => Kind::Byte,
            Type::Unknown | Type::Control | Type::UserDefined | Type::Unused => Kind::Special,
        };
        (piece.piece().to_string(), piece.score(), kind)
    });
    let entries = scored(pieces)?;
    let id = |id: i32| u32::try_from(id).ok().filter(|&id| (id as usize) < entries.len());
    let (bos, eos) = (id(trainer.bos_id()), id(trainer.eos_id()));
    if let (Some(bos), Some(eos)) = (bos, eos)
        && (bos, eos) != (1, 2)
    {
        bail!("its BOS is {bos} and its EOS {eos}: in tokenizer.bin they are 1 and 2");
    }
    let (bos, eos) = (bos.into_iter().collect(), eos.into_iter().collect());
    Ok(Words { pieces: Pieces::Scored(entries), bos, eos, template: None })
}
