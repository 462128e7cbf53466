//! What the processes of a group do together.

/// The processes that train one model, seen from one of them. All of them make the same calls in
/// the same order.
pub trait Link {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn size(&self) -> usize;

    /// Replaces `values` by their sum over all ranks, which is the same bit for bit on each.
    fn sum(&self, values: &mut [f32]);

    /// The values of every rank, one rank after the other. All ranks give equally many.
    fn gather(&self, values: &[f64]) -> Vec<f64>;

    /// The bytes that rank 0 gives.
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8>;

    /// Ends the processes of all ranks.
    fn abort(&self, status: u8) -> !;
}
