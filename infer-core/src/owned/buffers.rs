//! The memory of one sequence.

use std::vec::Vec;

use super::memory::vec_of;
use crate::cache::KvBuffers;
use crate::config::Config;
use crate::error::Error;
use crate::plan::{KvType, Limits, Plan};
use crate::state::{HotBuffers, State};

/// Memory that a [`State`] borrows, as large as a [`Plan`] says.
#[derive(Debug)]
pub struct Buffers {
    plan: Plan,
    hot_f32: Vec<f32>,
    hot_i8: Vec<i8>,
    kv_f32: Vec<f32>,
    kv_i8: Vec<i8>,
    kv_scales: Vec<f32>,
}

impl Buffers {
    /// Memory for running this model within these limits.
    ///
    /// # Errors
    /// As [`Config::plan`], and [`Error::OutOfMemory`].
    pub fn new(config: &Config, limits: Limits) -> Result<Buffers, Error> {
        let plan = config.plan(limits)?;
        let (kv_f32, kv_i8) = match limits.kv {
            KvType::F32 => (plan.kv_values, 0),
            KvType::Q8 => (0, plan.kv_values),
        };
        Ok(Buffers {
            plan,
            hot_f32: vec_of("hot.f32", 0.0, plan.hot_f32)?,
            hot_i8: vec_of("hot.i8", 0, plan.hot_i8)?,
            kv_f32: vec_of("kv.values", 0.0, kv_f32)?,
            kv_i8: vec_of("kv.values", 0, kv_i8)?,
            kv_scales: vec_of("kv.scales", 0.0, plan.kv_scales)?,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Overwrites all of it: with zeros to forget a sequence, with anything at all in a test, as no
    /// result depends on what was there before.
    pub fn fill(&mut self, number: f32, byte: i8) {
        for buffer in [&mut self.hot_f32, &mut self.kv_f32, &mut self.kv_scales] {
            buffer.fill(number);
        }
        for buffer in [&mut self.hot_i8, &mut self.kv_i8] {
            buffer.fill(byte);
        }
    }

    /// An empty state in this memory.
    ///
    /// # Errors
    /// [`Error::Rounding`], see [`State::new`].
    pub fn state(&mut self) -> Result<State<'_>, Error> {
        let hot = HotBuffers { f32: &mut self.hot_f32, i8: &mut self.hot_i8 };
        let kv = match self.plan.limits.kv {
            KvType::F32 => KvBuffers::F32(&mut self.kv_f32),
            KvType::Q8 => KvBuffers::Q8 { values: &mut self.kv_i8, scales: &mut self.kv_scales },
        };
        State::new(&self.plan, hot, kv)
    }
}
