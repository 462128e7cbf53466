//! Causal attention of one head, forward and backward, without a matrix of attention weights.
//!
//! q, k, v and their gradients are transposed, `(head_size, padded)`: positions are contiguous, so
//! that every load of a vector is one of neighbouring positions, whatever the head size. Scores are
//! in units of log2 (q comes scaled by log2(e) / √head_size). Forward keeps the running maximum and
//! sum of FlashAttention (Dao et al. 2022, arXiv:2205.14135), lanes are queries; what backward
//! needs is one number per query, the log2 of the sum. Backward recomputes the weights, lanes are
//! keys, and the gradient of q is summed over lanes at the end.
//!
//! Rows are padded with zeros to `padded` positions, a multiple of 16: keys there are masked, as
//! they come after every query, and queries there have gradients of zero.

// Index loops: iterators of vectors are not inlined into code that is compiled for another
// instruction set.
#![allow(clippy::needless_range_loop)]

mod backward;
mod forward;
mod head;

pub(super) use backward::Backward;
pub(super) use forward::Forward;
pub(super) use head::{Head, HeadDropout};
