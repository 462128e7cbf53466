//! Any bytes as a model file: refused with an error, or a model whose every tensor can be borrowed.
#![no_main]

use std::ops::Range;

use arbitrary::Arbitrary;
use infer_core::format::{HEADER_V1, Header, MAGIC};
use infer_core::{Config, HotBuffers, KvBuffers, KvType, Limits, Matrix, Model, State};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    /// Without it, the bytes are the file as they are. Few of those pass the first check.
    header: Option<Fields>,
    /// Bytes that the file is longer (or shorter) than its header promises.
    excess: Option<i8>,
    /// Where the file starts in memory, from a multiple of four.
    misalignment: Option<u8>,
    limits: [Size; 3],
    kv_int8: bool,
    bytes: Vec<u8>,
}

/// Header fields: small enough that about half of them are a model.
#[derive(Arbitrary, Debug)]
struct Fields {
    version: u8,
    heads: u8,
    half_head_size: u8,
    kv_mul: u8,
    hidden: u8,
    layers: u8,
    vocab: u8,
    seq: u8,
    shared: bool,
    group: u8,
    /// A field to be overwritten with any value.
    damage: Option<(u8, i32)>,
}

/// Usually a small number.
#[derive(Arbitrary, Debug)]
enum Size {
    Small(u8),
    Any(usize),
}

impl Size {
    fn get(&self) -> usize {
        match *self {
            Size::Small(size) => usize::from(size % 6),
            Size::Any(size) => size,
        }
    }
}

impl Fields {
    fn bytes(&self) -> Vec<u8> {
        let kv_heads = 1 + i32::from(self.heads % 3);
        let heads = kv_heads * (1 + i32::from(self.kv_mul % 3));
        let dim = heads * 2 * (1 + i32::from(self.half_head_size % 8));
        let group = 4 << (self.group % 3);
        let hidden = group * (1 + i32::from(self.hidden % 8));
        let (layers, seq) = (1 + i32::from(self.layers % 3), 1 + i32::from(self.seq % 8));
        let vocab = 1 + i32::from(self.vocab % 40);
        let version = i32::from(self.version % 3);
        let vocab = if version == 0 && !self.shared { -vocab } else { vocab };
        let mut fields = [dim, hidden, layers, heads, kv_heads, vocab, seq, group];
        if let Some((field, value)) = self.damage {
            fields[usize::from(field) % fields.len()] = value;
        }
        let mut bytes: Vec<u8> = Vec::new();
        if version > 0 {
            bytes.extend(MAGIC.to_le_bytes());
            bytes.extend(version.to_le_bytes());
        }
        fields[..7].iter().for_each(|field| bytes.extend(field.to_le_bytes()));
        if version > 0 {
            bytes.push(self.shared.into());
            bytes.extend(if version == 2 { fields[7] } else { 0 }.to_le_bytes());
            bytes.resize(HEADER_V1, 0);
        }
        bytes
    }
}

fuzz_target!(|input: Input| {
    let mut file = input.bytes;
    if let Some(fields) = &input.header {
        let mut header = fields.bytes();
        let promised = Header::parse(&header).and_then(|header| header.layout()).map_or(0, |layout| layout.file_bytes);
        if promised < 1 << 16 {
            let len = (promised as i64 + i64::from(input.excess.unwrap_or(0))).max(0) as usize;
            let payload = file.iter().copied().chain([0x3c]).cycle();
            header.extend(payload.take(len.saturating_sub(header.len())));
        }
        file = header;
    }

    let parsed = Header::parse(&file);
    assert_eq!(Config::from_header(&file), parsed.map(|header| header.config));
    let offset = usize::from(input.misalignment.unwrap_or(0) % 4);
    let mut memory = vec![0u32; file.len() / 4 + 2];
    let file_in_memory = &mut bytemuck::cast_slice_mut(&mut memory)[offset..][..file.len()];
    file_in_memory.copy_from_slice(&file);
    let model = Model::from_bytes(file_in_memory);

    let Ok(header) = parsed else {
        assert!(model.is_err());
        return;
    };
    assert_eq!(Header::parse(&header.to_bytes().unwrap()[..header.size()]), Ok(header));
    check_plan(&header.config, &input.limits, input.kv_int8);
    let Ok(layout) = header.layout_of(file.len() as u64) else {
        assert!(model.is_err());
        return;
    };
    let mut end = header.size() as u64;
    for tensor in layout.iter() {
        assert_eq!((tensor.offset, layout.get(tensor.name)), (end, Some(tensor)));
        end += tensor.bytes();
    }
    assert_eq!(end, layout.file_bytes);
    assert_eq!(model.is_ok(), file.len() as u64 >= end && offset == 0, "{model:?}");
    if let Ok(model) = model {
        assert_eq!(model.header(), header);
        walk(&model);
    }
});

fn walk(model: &Model<'_>) {
    let c = model.config();
    for l in 0..c.n_layers {
        let layer = model.layer(l).unwrap();
        assert_eq!((layer.rms_att.len(), layer.rms_ffn.len()), (c.dim, c.dim));
        check_matrix(layer.wq, c.dim, c.dim);
        check_matrix(layer.wk, c.kv_dim(), c.dim);
        check_matrix(layer.wv, c.kv_dim(), c.dim);
        check_matrix(layer.wo, c.dim, c.dim);
        check_matrix(layer.w1, c.hidden_dim, c.dim);
        check_matrix(layer.w2, c.dim, c.hidden_dim);
        check_matrix(layer.w3, c.hidden_dim, c.dim);
    }
    assert!(model.layer(c.n_layers).is_none() && model.layer(usize::MAX).is_none());
    assert_eq!(model.rms_final().len(), c.dim);
    check_matrix(model.tok_emb(), c.vocab_size, c.dim);
    check_matrix(model.wcls(), c.vocab_size, c.dim);
}

fn check_matrix(matrix: Matrix<'_>, rows: usize, cols: usize) {
    assert_eq!((matrix.rows(), matrix.cols()), (rows, cols));
    match matrix {
        Matrix::F32 { w, .. } => assert_eq!(w.len(), rows * cols),
        Matrix::Q8(q8) => assert_eq!((q8.q.len(), q8.s.len() * q8.group_size), (rows * cols, rows * cols)),
    }
    for row in [0, rows / 2, rows - 1] {
        assert_eq!(matrix.row_range(row..row + 1).map(|matrix| matrix.rows()), Some(1));
    }
    assert!(matrix.row_range(rows..rows + 1).is_none());
    assert!(matrix.row_range(Range { start: 1, end: 0 }).is_none());
    assert!(matrix.row_range(0..usize::MAX).is_none());
}

/// A plan is refused, or its sizes are what a state accepts, and one element less is not.
fn check_plan(config: &Config, limits: &[Size; 3], kv_int8: bool) {
    let kv = if kv_int8 { KvType::Q8 } else { KvType::F32 };
    let [max_seq, batch, threads] = limits.each_ref().map(Size::get);
    let limits = Limits::new(max_seq).with_batch(batch).with_threads(threads).with_kv(kv);
    let Ok(plan) = config.plan(limits) else { return };
    if plan.hot_bytes() + plan.kv_bytes() > 1 << 20 {
        return;
    }
    for missing in 0..2 {
        let mut hot = (vec![0.0; plan.hot_f32 - missing], vec![0; plan.hot_i8]);
        let (mut f32s, mut i8s, mut scales) =
            (vec![0.0; plan.kv_values], vec![0; plan.kv_values], vec![0.0; plan.kv_scales]);
        let kv = match kv {
            KvType::F32 => KvBuffers::F32(&mut f32s),
            KvType::Q8 => KvBuffers::Q8 { values: &mut i8s, scales: &mut scales },
        };
        let state = State::new(&plan, HotBuffers { f32: &mut hot.0, i8: &mut hot.1 }, kv);
        assert_eq!(state.is_ok(), missing == 0);
    }
}
