//! The files that `trainer download` fetches: addresses, sizes and checksums.

const HUGGING_FACE: &str = "https://huggingface.co";
const GITHUB: &str = "https://raw.githubusercontent.com";

/// A file that somebody has published.
#[derive(Clone, Copy)]
pub struct Item {
    /// Address of the site.
    pub base: &'static str,
    /// Where the file is on the site.
    pub path: &'static str,
    /// Where the file goes in the folder for downloads. A `.tar.gz` is unpacked.
    pub to: &'static str,
    /// SHA-256 in hexadecimal, where it is known.
    pub sha256: Option<&'static str>,
    /// Largest size of any edition of the file, in MB.
    pub most_mb: u64,
}

/// TinyStories as JSON shards.
pub const TINYSTORIES: &[Item] = &[Item {
    base: HUGGING_FACE,
    path: "datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz",
    to: "TinyStories_all_data.tar.gz",
    sha256: Some("26cf7605aca15bc4ea6fa637256400d9d01317b28ed296172b2d1dd160cd7699"),
    most_mb: 4096,
}];

/// A model of 260 thousand parameters and its tokenizer.
pub const STORIES260K: &[Item] = &[
    model(
        "karpathy/tinyllamas/resolve/main/stories260K/stories260K.bin",
        "stories260K/stories260K.bin",
        16,
        Some("b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696"),
    ),
    model(
        "karpathy/tinyllamas/resolve/main/stories260K/tok512.bin",
        "stories260K/tokenizer.bin",
        16,
        Some("037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312"),
    ),
];

/// A model of 15 million parameters and its tokenizer.
pub const STORIES15M: &[Item] = &[
    model(
        "karpathy/tinyllamas/resolve/main/stories15M.bin",
        "stories15M/stories15M.bin",
        128,
        Some("cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"),
    ),
    tokenizer("stories15M/tokenizer.bin"),
];

/// A model of 42 million parameters and its tokenizer.
pub const STORIES42M: &[Item] = &[
    model("karpathy/tinyllamas/resolve/main/stories42M.bin", "stories42M/stories42M.bin", 512, None),
    tokenizer("stories42M/tokenizer.bin"),
];

/// A model of 110 million parameters and its tokenizer.
pub const STORIES110M: &[Item] = &[
    model("karpathy/tinyllamas/resolve/main/stories110M.bin", "stories110M/stories110M.bin", 1024, None),
    tokenizer("stories110M/tokenizer.bin"),
];

/// Llama 2's tokenizer in the format of llama2.c.
pub const TOKENIZER: &[Item] = &[tokenizer("tokenizer.bin")];

const fn model(path: &'static str, to: &'static str, most_mb: u64, sha256: Option<&'static str>) -> Item {
    Item { base: HUGGING_FACE, path, to, sha256, most_mb }
}

const fn tokenizer(to: &'static str) -> Item {
    Item {
        base: GITHUB,
        path: "karpathy/llama2.c/master/tokenizer.bin",
        to,
        sha256: Some("50a52ef822ee9e83de5ce9d0be0a025a773d019437f58b5ff9dcafb063ece361"),
        most_mb: 16,
    }
}
