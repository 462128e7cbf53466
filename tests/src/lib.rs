//! Helpers of the workspace's tests: a slow, obvious forward pass to compare with ([`oracle`]),
//! seeded random models ([`random`]) and vocabularies ([`tokenizer`]), a model ready to run
//! ([`Run`]), the golden outputs ([`shared`]) and the tolerances ([`tolerance`]).

#[cfg(target_arch = "x86_64")]
pub mod mxcsr;
pub mod oracle;
pub mod random;
mod run;
pub mod shared;
pub mod tokenizer;
pub mod tolerance;

pub use run::Run;

/// The examples of the README, compiled as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
