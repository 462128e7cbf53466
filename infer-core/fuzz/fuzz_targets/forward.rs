//! Tiny models with any weights, run in any order of calls: errors, but no panic. Afterwards,
//! tokens in batches on one of the machine's kernels and several tasks give the same bits as one by
//! one on the scalar kernels.
#![no_main]

use std::num::NonZeroUsize;

use arbitrary::Arbitrary;
use infer_core::format::{Header, Version, write};
use infer_core::{
    Buffers, Config, Engine, Error, Kernels, KvType, Limits, Model, Plan, ProbIndex, Runner, Sampler, State,
    WeightType, begin, classify, forward, step,
};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    shape: Shape,
    /// Weights are small random numbers from this seed, so that most logits are finite …
    seed: u64,
    /// … but for these, at any place of the file …
    damage: Vec<(u16, u32)>,
    /// … or all of them are these bytes, over and over.
    raw: Option<Vec<u8>>,
    limits: [u8; 3],
    kv_int8: bool,
    calls: Vec<Call>,
    temperature: f32,
    topp: f32,
    tokens: [u8; 32],
    batches: [u8; 8],
}

#[derive(Arbitrary, Debug)]
struct Shape {
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
}

#[derive(Arbitrary, Debug)]
enum Call {
    Rewind { pos: u8 },
    Forward { tokens: Vec<Token> },
    Begin { tokens: Vec<Token> },
    Step,
    Classify { row: u8 },
    Sample { scratch: Option<u8> },
    OtherModel,
}

#[derive(Arbitrary, Debug)]
enum Token {
    Valid(u8),
    Any(u32),
}

impl Shape {
    /// dim up to 16, hidden_dim up to 96, 1 or 2 layers, vocabulary up to 40, up to 8 positions.
    fn header(&self) -> Header {
        let (version, group_size) = match self.version % 3 {
            0 => (Version::V0, None),
            1 => (Version::V1, None),
            _ => (Version::V2, Some(4 << (self.group % 3))),
        };
        // Groups divide dim, so int8 takes heads from the few shapes whose dim is a multiple of 16.
        let (n_heads, head_size) = match group_size {
            Some(_) => [(1, 16), (2, 8), (4, 4), (8, 2)][usize::from(self.heads % 4)],
            None => {
                let n_heads = 1 + usize::from(self.heads % 4);
                (n_heads, 2 * (1 + usize::from(self.half_head_size) % (8 / n_heads)))
            }
        };
        let kv_mul = 1 + usize::from(self.kv_mul) % n_heads;
        let hidden_dim = group_size.unwrap_or(1) * (1 + usize::from(self.hidden) % (96 / group_size.unwrap_or(1)));
        let (n_layers, vocab_size) = (1 + usize::from(self.layers % 2), 1 + usize::from(self.vocab % 40));
        let seq_len = 1 + usize::from(self.seq % 32);
        let mut config = Config::new(n_heads * head_size, hidden_dim, n_layers, n_heads, vocab_size, seq_len)
            .with_kv_heads(if n_heads.is_multiple_of(kv_mul) { n_heads / kv_mul } else { n_heads })
            .with_weights(group_size.map_or(WeightType::F32, |group_size| WeightType::Q8 { group_size }));
        config.shared_classifier = self.shared;
        Header::new(version, config)
    }
}

fuzz_target!(|input: Input| {
    let header = input.shape.header();
    let config = header.config;
    let mut memory = model_memory(&input, &header);
    let model = Model::from_bytes(bytemuck::cast_slice(&memory)).unwrap();
    let limits = Limits::new(1 + usize::from(input.limits[0]) % config.seq_len)
        .with_batch(1 + usize::from(input.limits[1] % 24))
        .with_threads(1 + usize::from(input.limits[2] % 4))
        .with_kv(if input.kv_int8 && config.head_size().is_multiple_of(4) { KvType::Q8 } else { KvType::F32 });
    let plan = config.plan(limits).unwrap();
    any_calls(&input, &model, &plan);

    let tokens = input.tokens.map(|token| u32::from(token) % config.vocab_size as u32);
    let tokens = &tokens[..limits.max_seq];
    let mut one_by_one = buffers(&config.plan(limits.with_batch(1).with_threads(1)).unwrap());
    let mut one_by_one = one_by_one.state().unwrap();
    let expected: Vec<_> = (0..tokens.len())
        .map(|pos| {
            forward(&model, &mut one_by_one, &Engine::scalar(), &tokens[pos..=pos]).unwrap();
            logits(&model, &mut one_by_one, &Engine::scalar(), 0)
        })
        .collect();

    let mut batched = buffers(&plan);
    let mut batched = batched.state().unwrap();
    let runner = Backwards(NonZeroUsize::MIN.saturating_add(usize::from(input.limits[2] / 4 % 6)));
    let table = usize::from(input.shape.seq / 32) % Kernels::all().count();
    let engine = Engine::new(Kernels::all().nth(table).unwrap(), &runner);
    let mut sizes = input.batches.iter().map(|n| 1 + usize::from(*n) % limits.batch);
    let mut pos = 0;
    while pos < tokens.len() {
        let n = sizes.next().unwrap_or(1).min(tokens.len() - pos);
        forward(&model, &mut batched, &engine, &tokens[pos..pos + n]).unwrap();
        for row in (0..n).rev() {
            assert_eq!(logits(&model, &mut batched, &engine, row), expected[pos + row], "position {}", pos + row);
        }
        pos += n;
    }

    // The same file cut by one byte.
    let cut = memory.len() * 4 - 1;
    assert!(matches!(Model::from_bytes(&bytemuck::cast_slice_mut(&mut memory)[..cut]), Err(Error::Truncated { .. })));
});

/// Bits of the logits, or the error.
fn logits(model: &Model<'_>, state: &mut State<'_>, engine: &Engine<'_>, row: usize) -> Result<Vec<u32>, Error> {
    classify(model, state, engine, row).map(|logits| logits.iter().map(|logit| logit.to_bits()).collect())
}

/// All calls in the order of the input, valid or not.
fn any_calls(input: &Input, model: &Model<'_>, plan: &Plan) {
    let config = *model.config();
    let mut memory = buffers(plan);
    let mut state = memory.state().unwrap();
    let mut other_config = config;
    other_config.seq_len += 1;
    let other_plan = other_config.plan(plan.limits).unwrap();
    let mut other = buffers(&other_plan);
    let mut other = other.state().unwrap();
    let mut sampler = Sampler::new(input.temperature, input.topp, 1).or_else(|_| Sampler::new(1.0, 0.9, 1)).unwrap();
    let engine = Engine::native();
    let pick = |tokens: &[Token]| -> Vec<u32> {
        let pick = |token: &Token| match *token {
            Token::Valid(token) => u32::from(token) % config.vocab_size as u32,
            Token::Any(token) => token,
        };
        tokens.iter().map(pick).collect()
    };
    // Positions 0 to 9, or the largest.
    let position = |pos: u8| if pos == 255 { usize::MAX } else { usize::from(pos % 10) };
    for call in input.calls.iter().take(32) {
        match call {
            Call::Rewind { pos } => {
                let (pos, filled) = (position(*pos), state.filled());
                assert_eq!(state.rewind(pos).is_ok(), pos <= filled);
                assert_eq!(state.filled(), pos.min(filled));
            }
            Call::Forward { tokens } => drop(forward(model, &mut state, &engine, &pick(tokens))),
            Call::Begin { tokens } => {
                let filled = state.filled();
                let _ = begin(model, &mut state, &pick(tokens));
                assert_eq!(state.filled(), filled);
            }
            Call::Step => drop(step(model, &mut state, &engine)),
            Call::Classify { row } => drop(classify(model, &mut state, &engine, usize::from(*row)).map(drop)),
            Call::Sample { scratch } => {
                let mut scratch = vec![ProbIndex::default(); scratch.map_or(config.vocab_size, usize::from)];
                // Finite or not: buffers are not initialised to anything in particular.
                if let Ok(token) = sampler.sample(state.logits(), &mut scratch) {
                    assert!((token as usize) < config.vocab_size);
                }
            }
            Call::OtherModel => {
                assert_eq!(begin(model, &mut other, &[0]), Err(Error::ModelMismatch));
                assert_eq!(step(model, &mut other, &engine), Err(Error::ModelMismatch));
                assert_eq!(classify(model, &mut other, &engine, 0).err(), Some(Error::ModelMismatch));
            }
        }
        assert!(state.filled() <= plan.limits.max_seq);
    }
}

/// A model file, aligned.
fn model_memory(input: &Input, header: &Header) -> Vec<u32> {
    let layout = header.layout().unwrap();
    let mut file = Vec::new();
    let mut random = input.seed | 1;
    write(&mut file, header, |name, _| {
        let n = layout.get(name).map_or(0, |tensor| tensor.rows * tensor.cols);
        Ok((0..n).map(|_| uniform(&mut random)).collect())
    })
    .unwrap();
    assert_eq!(file.len() as u64, layout.file_bytes);
    let weights = &mut file[header.size()..];
    match &input.raw {
        Some(raw) if !raw.is_empty() => weights.iter_mut().zip(raw.iter().cycle()).for_each(|(w, raw)| *w = *raw),
        _ => {
            for (at, bits) in &input.damage {
                let at = usize::from(*at) * 4 % (weights.len() / 4 * 4);
                weights[at..at + 4].copy_from_slice(&bits.to_le_bytes());
            }
        }
    }
    // Every tensor is a whole number of words: groups are multiples of 4.
    file.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)).collect()
}

/// From -1 to 1, by xorshift64.
fn uniform(random: &mut u64) -> f32 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    (*random >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Buffers of exactly the planned sizes, full of NaN.
fn buffers(plan: &Plan) -> Buffers {
    let mut buffers = Buffers::new(&plan.config, plan.limits).unwrap();
    buffers.fill(f32::NAN, -128);
    buffers
}

/// Cuts work as a pool of threads would, and does it on one, last task first.
struct Backwards(NonZeroUsize);

#[allow(unsafe_code)]
// SAFETY: a plain loop calls each index once and returns after the last.
unsafe impl Runner for Backwards {
    fn threads(&self) -> NonZeroUsize {
        self.0
    }

    fn min_work(&self) -> usize {
        1
    }

    fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n).rev().for_each(task);
    }
}
