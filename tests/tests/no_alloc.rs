//! The library allocates nothing: a whole run, from bytes to text, under a counting allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use infer_core::format::Version;
use infer_core::{
    Engine, HotBuffers, IndexEntry, KvBuffers, KvType, Limits, MergeSlot, Model, Plan, ProbIndex, Sampler, State,
    Tokenizer, classify, forward,
};
use tests::random::{RandomModel, config};

struct Counting;

thread_local! {
    /// Counts allocations of this thread alone, since the test harness allocates in another one. A
    /// constant start keeps the counter from allocating.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[allow(unsafe_code)]
// SAFETY: every call goes to the system's allocator as it is. Counting touches no memory of the
// caller and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is the one that System asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the one that System asks for.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_whole_run_allocates_nothing() {
    let file = RandomModel::new(config(48, 31, 2, 6, 2), 7).to_file(Version::V0);
    let pieces = (0..300).map(|id| char::from_u32(0x20 + id).unwrap().to_string());
    let vocabulary = tests::tokenizer::file(0, pieces);
    let (mut f32s, mut i8s);
    for kv in [KvType::F32, KvType::Q8] {
        let plan = config(48, 31, 2, 6, 2).plan(Limits::new(40).with_batch(4).with_kv(kv)).unwrap();
        let buffers = match kv {
            KvType::F32 => {
                f32s = vec![0.0; plan.kv_values];
                KvBuffers::F32(&mut f32s)
            }
            KvType::Q8 => {
                (f32s, i8s) = (vec![0.0; plan.kv_scales], vec![0; plan.kv_values]);
                KvBuffers::Q8 { values: &mut i8s, scales: &mut f32s }
            }
        };
        run(&plan, file.bytes(), &vocabulary, buffers);
    }
}

fn run(plan: &Plan, file: &[u8], vocabulary: &[u8], kv: KvBuffers<'_>) {
    let (mut hot_f32, mut hot_i8) = (vec![0.0; plan.hot_f32], vec![0; plan.hot_i8]);
    let mut index = vec![IndexEntry::EMPTY; plan.tokenizer];
    let mut scratch = vec![ProbIndex::default(); plan.sampler];
    let mut slots = [MergeSlot::EMPTY; 64];
    let mut tokens = [0; 64];

    let before = ALLOCATIONS.get();
    let model = Model::from_bytes(file).unwrap();
    let hot = HotBuffers { f32: &mut hot_f32, i8: &mut hot_i8 };
    let mut state = State::new(plan, hot, kv).unwrap();
    let tokenizer = Tokenizer::new(vocabulary, 300, &mut index).unwrap();
    let mut sampler = Sampler::new(1.0, 0.9, 1).unwrap();
    let engine = Engine::scalar();
    let n = tokenizer.encode("Once upon a time", true, &mut slots, &mut tokens).unwrap();
    let mut length = 0;
    for tokens in tokens[..n].chunks(4) {
        forward(&model, &mut state, &engine, tokens).unwrap();
    }
    let mut row = (n - 1) % 4;
    while state.filled() < 40 {
        let logits = classify(&model, &mut state, &engine, row).unwrap();
        let token = sampler.sample(logits, &mut scratch).unwrap();
        length += tokenizer.decode(0, token).unwrap().len();
        forward(&model, &mut state, &engine, &[token]).unwrap();
        row = 0;
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert!(length > 0);
}
