use infer_core::{
    Engine, Error, HotBuffers, Kernels, KvBuffers, KvType, Limits, Model, Plan, Runner, Serial, State, classify,
    forward,
};

/// Owned buffers for running a model in tests.
pub struct Run<'m, 'r> {
    /// The model.
    pub model: Model<'m>,
    /// The plan.
    pub plan: Plan,
    /// Kernels and runner.
    pub engine: Engine<'r>,
    hot_f32: Vec<f32>,
    hot_i8: Vec<i8>,
    kv_f32: Vec<f32>, // the values, or the scales of an int8 cache
    kv_i8: Vec<i8>,
}

impl<'m> Run<'m, 'static> {
    /// Buffers for the model's whole context and batches of up to `batch` tokens.
    ///
    /// # Panics
    /// When the bytes are no model.
    pub fn new(file: &'m [u8], batch: usize) -> Run<'m, 'static> {
        Run::with_runner(file, batch, 1, &Serial)
    }
}

impl<'m, 'r> Run<'m, 'r> {
    /// The same with threads.
    ///
    /// # Panics
    /// When the bytes are no model.
    pub fn with_runner(file: &'m [u8], batch: usize, threads: usize, runner: &'r dyn Runner) -> Run<'m, 'r> {
        Run::with_engine(file, batch, threads, Engine::new(Kernels::scalar(), runner))
    }

    /// The same with kernels of choice.
    ///
    /// # Panics
    /// When the bytes are no model.
    pub fn with_engine(file: &'m [u8], batch: usize, threads: usize, engine: Engine<'r>) -> Run<'m, 'r> {
        let max_seq = Model::from_bytes(file).unwrap().config().seq_len;
        Run::with_limits(file, Limits { max_seq, batch, threads, kv: KvType::F32 }, engine)
    }

    /// Buffers for these limits.
    ///
    /// # Panics
    /// When the bytes are no model, or the limits are not for it.
    pub fn with_limits(file: &'m [u8], limits: Limits, engine: Engine<'r>) -> Run<'m, 'r> {
        let model = Model::from_bytes(file).unwrap();
        let plan = model.config().plan(limits).unwrap();
        let (kv_f32, kv_i8) = match limits.kv {
            KvType::F32 => (plan.kv_values, 0),
            KvType::I8 => (plan.kv_scales, plan.kv_values),
        };
        Run {
            model,
            plan,
            engine,
            // Garbage must not matter.
            hot_f32: vec![f32::NAN; plan.hot_f32],
            hot_i8: vec![-77; plan.hot_i8],
            kv_f32: vec![f32::from_bits(u32::MAX); kv_f32],
            kv_i8: vec![-128; kv_i8],
        }
    }

    /// A fresh state in the buffers.
    ///
    /// # Panics
    /// Never: the buffers are those of the plan.
    pub fn state(&mut self) -> State<'_> {
        let hot = HotBuffers { f32: &mut self.hot_f32, i8: &mut self.hot_i8 };
        let kv = match self.plan.limits.kv {
            KvType::F32 => KvBuffers::F32(&mut self.kv_f32),
            KvType::I8 => KvBuffers::I8 { values: &mut self.kv_i8, scales: &mut self.kv_f32 },
        };
        State::new(&self.plan, hot, kv).unwrap()
    }

    /// Logits after each of the tokens, read from position 0 in batches of the planned size.
    ///
    /// # Errors
    /// As [`forward`] and [`classify`].
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Error> {
        let (model, engine, batch) = (self.model, self.engine, self.plan.limits.batch);
        let mut state = self.state();
        let mut all = Vec::new();
        for tokens in tokens.chunks(batch) {
            forward(&model, &mut state, &engine, tokens)?;
            for row in 0..tokens.len() {
                all.push(classify(&model, &mut state, &engine, row)?.to_vec());
            }
        }
        Ok(all)
    }
}
