use infer_core::{Buffers, Engine, Error, Kernels, Limits, Model, Plan, Runner, Serial, State, classify, forward};

/// A model with the buffers to run it in tests.
pub struct Run<'m, 'r> {
    /// The model.
    pub model: Model<'m>,
    /// Kernels and runner.
    pub engine: Engine<'r>,
    buffers: Buffers,
}

impl<'m> Run<'m, 'static> {
    /// Buffers for the model's whole context and batches of up to `batch` tokens.
    ///
    /// # Panics
    /// When the bytes are not a model.
    pub fn new(file: &'m [u8], batch: usize) -> Run<'m, 'static> {
        Run::with_runner(file, batch, 1, &Serial)
    }
}

impl<'m, 'r> Run<'m, 'r> {
    /// The same with threads.
    ///
    /// # Panics
    /// When the bytes are not a model.
    pub fn with_runner(file: &'m [u8], batch: usize, threads: usize, runner: &'r dyn Runner) -> Run<'m, 'r> {
        Run::with_engine(file, batch, threads, Engine::new(Kernels::scalar(), runner))
    }

    /// The same with kernels of choice.
    ///
    /// # Panics
    /// When the bytes are not a model.
    pub fn with_engine(file: &'m [u8], batch: usize, threads: usize, engine: Engine<'r>) -> Run<'m, 'r> {
        let max_seq = Model::from_bytes(file).unwrap().config().seq_len;
        Run::with_limits(file, Limits::new(max_seq).with_batch(batch).with_threads(threads), engine)
    }

    /// Buffers for these limits.
    ///
    /// # Panics
    /// When the bytes are not a model, or it does not run within the limits.
    pub fn with_limits(file: &'m [u8], limits: Limits, engine: Engine<'r>) -> Run<'m, 'r> {
        let model = Model::from_bytes(file).unwrap();
        let mut buffers = Buffers::new(model.config(), limits).unwrap();
        buffers.fill(f32::from_bits(u32::MAX), -128); // garbage must not matter
        Run { model, engine, buffers }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.buffers.plan()
    }

    /// A fresh state in the buffers.
    ///
    /// # Panics
    /// Never: the buffers are those of the plan.
    pub fn state(&mut self) -> State<'_> {
        self.buffers.state().unwrap()
    }

    /// Logits after each of the tokens, read from position 0 in batches of the planned size.
    ///
    /// # Errors
    /// As [`forward`] and [`classify`].
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Error> {
        let (model, engine, batch) = (self.model, self.engine, self.plan().limits.batch);
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
