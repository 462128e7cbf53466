//! Connects the GPUs of all ranks, so that gradients need not go through the host.

use dfdx::prelude::Cuda;

use crate::model::{AllReduce, Nccl, gpu_number};
use crate::report::output::{note, say};
use crate::train::group::Group;

/// Connects the GPU of this rank with those of the others. `None` where there is one rank, or
/// where NCCL cannot work on any account: all ranks find that out before one of them waits in it.
///
/// # Errors
/// NCCL fails on a rank. The error is of that rank alone, and ends all of them: they may wait in
/// NCCL by then, where no other rank's word reaches them.
pub fn connect(gpu: &Cuda, group: &Group) -> anyhow::Result<Option<Box<dyn AllReduce<Cuda>>>> {
    if group.size() == 1 {
        return Ok(None);
    }
    if let Some(obstacle) = obstacle(gpu, group)? {
        note(format_args!("note: gradients go from GPU to GPU through the host's memory: {obstacle}"));
        return Ok(None);
    }
    let id = group.prepare(|id| id.map_or_else(Nccl::id, Ok), |id| Ok(id.clone()))?;
    let all = Nccl::connect(gpu, &id, group.rank(), group.size())?;
    say(format_args!("NCCL sums the gradients of {} GPUs", group.size()));
    Ok(Some(Box::new(all)))
}

/// Why NCCL cannot be used, which is the same text on all ranks but for the loader's words.
fn obstacle(gpu: &Cuda, group: &Group) -> anyhow::Result<Option<String>> {
    let loaded = Nccl::load();
    let number = group.agree(gpu_number(gpu))?;
    let [a, b, c, d] = number.map(f64::from);
    let all = group.gather(&[f64::from(u8::from(loaded.is_ok())), a, b, c, d]);
    Ok(first_obstacle(&all, loaded.err()))
}

/// The first obstacle of what ranks say of themselves: whether they have NCCL (1), and the four
/// parts of the GPU's number.
fn first_obstacle(all: &[f64], mine: Option<String>) -> Option<String> {
    let ranks: Vec<_> = all.chunks_exact(5).collect();
    if let Some(rank) = ranks.iter().position(|rank| rank[0] == 0.0) {
        return Some(mine.unwrap_or_else(|| format!("NCCL (libnccl.so.2) is missing on rank {rank}")));
    }
    let shares = |a: usize| ranks[..a].iter().position(|b| *b == ranks[a]).map(|b| (b, a));
    let (a, b) = (0..ranks.len()).find_map(shares)?;
    Some(format!("ranks {a} and {b} have one GPU together, and NCCL takes one for each"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn obstacles_are_the_same_on_all_ranks() {
        let rank = |has: f64, gpu: f64| [has, 1.0, 2.0, 3.0, gpu];
        let first = |ranks: [[f64; 5]; 3]| first_obstacle(ranks.as_flattened(), None);
        assert_eq!(first([rank(1.0, 1.0), rank(1.0, 2.0), rank(1.0, 3.0)]), None);
        let missing = first([rank(1.0, 1.0), rank(1.0, 1.0), rank(0.0, 3.0)]).unwrap();
        assert!(missing.contains("missing on rank 2"), "{missing}");
        let shared = first([rank(1.0, 1.0), rank(1.0, 3.0), rank(1.0, 3.0)]).unwrap();
        assert!(shared.starts_with("ranks 1 and 2"), "{shared}");
    }
}
