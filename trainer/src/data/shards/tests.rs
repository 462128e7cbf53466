use super::*;
use crate::data::split::Selection;

const VALID: [u8; 6] = [1, 0, 3, 1, 43, 1];
const TRAIN: [u8; 4] = [1, 0, 44, 1];

/// A tokenizer.bin of `n` tokens.
fn tokenizer(n: u32) -> Vec<u8> {
    let mut file = Vec::new();
    infer_core::tokenizer::write(&mut file, 4, (0..n).map(|id| (0.0, format!("{id:04}")))).unwrap();
    file
}

/// A folder with a validation shard of three tokens and a training shard of two.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let part = Part { pieces: Vec::new(), stories: Selection::All };
    let file = TokenizerFile::from_bytes("tokenizer.bin".as_ref(), tokenizer(300)).unwrap();
    let mut meta = Meta::new(&file, Separator::default(), vec![part.clone(), part]);
    meta.crc32c = [&VALID[..], &TRAIN].map(|bytes| Some(crc32c::crc32c(bytes))).to_vec();
    meta.write(folder.path()).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("tokenizer.bin", file.bytes());
    write("shard00000.bin", &VALID);
    write("shard00001.bin", &TRAIN);
    folder
}

fn open(folder: &Path) -> anyhow::Result<Shards> {
    Shards::open(folder, None)
}

#[test]
fn tokens_are_read_and_checked() {
    let folder = folder();
    let shards = open(folder.path()).unwrap();
    assert_eq!((shards.vocab_size(), shards.valid().n_tokens(), shards.train().len()), (300, 3, 1));
    let mut tokens = [0; 2];
    shards.valid().read(1, &mut tokens).unwrap();
    assert_eq!(tokens, [259, 299]);
    let fails = |shard: &Shard, at: usize| shard.read(at, &mut [0; 2]).unwrap_err().to_string();
    assert!(fails(shards.valid(), 2).contains("has 3 tokens: 2 from 2 on"));
    assert!(fails(shards.valid(), usize::MAX).contains("too many"));
    assert!(fails(&shards.train()[0], 0).contains("token 300, the vocabulary 300"));
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let fails_with = |name: &str, bytes: Option<&[u8]>, words: &str| {
        let folder = folder();
        let path = folder.path().join(name);
        bytes.map_or_else(|| std::fs::remove_file(&path), |bytes| std::fs::write(&path, bytes)).unwrap();
        let message = format!("{:#}", open(folder.path()).err().unwrap());
        assert!(message.contains(words), "no {words:?} in: {message}");
        assert!(message.contains(folder.path().to_str().unwrap()), "{message}");
    };
    fails_with("meta.json", None, "has no token shards");
    fails_with("meta.json", Some(b"{"), "does not describe token shards");
    fails_with("tokenizer.bin", None, "No such file");
    fails_with("tokenizer.bin", Some(b"another"), "no tokenizer.bin of llama2.c");
    fails_with("tokenizer.bin", Some(&tokenizer(301)), "is not the tokenizer");
    fails_with("shard00001.bin", None, "shard00001.bin of 2 is missing: run `trainer pretokenize --out ");
    fails_with("shard00001.bin", Some(b"odd"), "has 3 bytes");
    fails_with("shard00001.bin", Some(b""), "has 0 bytes");
    // The file is cut between two tokens.
    fails_with("shard00000.bin", Some(&VALID[..4]), "shard00000.bin is damaged");
    fails_with("shard00001.bin", Some(&TRAIN[..2]), "to make it again");
}

/// One flipped bit anywhere in a shard is found, and so is a shard that is cut between two tokens.
#[test]
fn damage_anywhere_is_found() {
    let folder = folder();
    let path = folder.path().join("shard00000.bin");
    let whole: Vec<u8> = (0..10_000u16).flat_map(|i| (i % 300).to_le_bytes()).collect();
    let mut meta = read_meta(folder.path()).unwrap().unwrap();
    meta.crc32c[0] = Some(crc32c::crc32c(&whole));
    meta.write(folder.path()).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let message = open(folder.path()).err().unwrap().to_string();
        assert!(message.contains("shard00000.bin is damaged") && message.contains("pretokenize"), "{message}");
    };
    for place in 0..200 {
        let bit = place * (8 * whole.len() - 1) / 199;
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        refused(&bytes);
        refused(&whole[..whole.len() - 2 * (place + 1)]);
    }
    std::fs::write(&path, whole).unwrap();
    open(folder.path()).unwrap();
}

/// Folders of earlier versions have no checksums and are read as they are.
#[test]
fn folders_without_checksums_are_read() {
    let folder = folder();
    let mut meta = read_meta(folder.path()).unwrap().unwrap();
    meta.crc32c.clear();
    let text = serde_json::to_string(&meta).unwrap();
    assert!(text.contains(",\"crc32c\":[]"));
    std::fs::write(meta_path(folder.path()), text.replace(",\"crc32c\":[]", "")).unwrap();
    assert_eq!(open(folder.path()).unwrap().valid().n_tokens(), 3);
}

/// data00.bin is the validation split; the tokenizer lies where llama2.c writes it, or is given.
#[test]
fn shards_of_llama2c_are_read() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("tok300");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("data00.bin"), VALID).unwrap();
    let fails = |words: &str| {
        let message = format!("{:#}", open(&folder).err().unwrap());
        assert!(message.contains(words), "no {words:?} in: {message}");
    };
    fails("there is none to train on");
    std::fs::write(folder.join("data01.bin"), [1, 0, 4, 0]).unwrap();
    std::fs::write(folder.join("data02.bin"), [1, 0, 5, 0]).unwrap();
    fails("--tokenizer");
    for place in ["tok300/tokenizer.bin", "tok300.bin", "tokenizer.bin"] {
        let path = data.path().join(place);
        std::fs::write(&path, tokenizer(300)).unwrap();
        assert!(Shards::are_in(&folder).unwrap());
        let shards = open(&folder).unwrap();
        assert_eq!((shards.vocab_size(), shards.valid().n_tokens(), shards.train().len()), (300, 3, 2), "{place}");
        std::fs::remove_file(path).unwrap();
    }
    // A tokenizer beside the folder may be Llama 2's. One with the shards is their own and takes
    // precedence over a given one.
    let given = TokenizerFile::from_bytes("given".as_ref(), tokenizer(400)).unwrap();
    std::fs::write(data.path().join("tokenizer.bin"), tokenizer(301)).unwrap();
    fails("is named after another vocabulary: give the shards' own with --tokenizer");
    std::fs::write(data.path().join("tok300.bin"), tokenizer(300)).unwrap();
    assert_eq!(Shards::open(&folder, Some(&given)).unwrap().vocab_size(), 300);
    std::fs::remove_file(data.path().join("tok300.bin")).unwrap();
    assert_eq!(Shards::open(&folder, Some(&given)).unwrap().vocab_size(), 400);
    std::fs::write(folder.join("data01.bin"), [4, 0, 4, 0]).unwrap();
    let message = Shards::open(&folder, Some(&given)).err().unwrap().to_string();
    assert!(message.contains("data01.bin does not begin with BOS"), "{message}");
    // In a folder with stories, shards do not count: llama2.c leaves those of Llama 2's vocabulary
    // beside the stories.
    std::fs::write(folder.join("data00.json"), "[]").unwrap();
    assert!(!Shards::are_in(&folder).unwrap());
}
