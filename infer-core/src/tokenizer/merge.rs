//! Byte-pair merging of one stretch of text.

use super::index::{NONE, Pieces};
use crate::error::Error;

/// Scratch of encoding: one unit of text (a character, or a byte of an unknown one) that merges
/// with its neighbours.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MergeSlot {
    /// Current token; the merged one if it absorbed its right neighbours.
    token: u32,
    /// The left neighbour that has not been merged away, or `NONE`; `next` is the right one.
    prev: u32,
    next: u32,
    /// The token of the pair with the right neighbour, or `NONE`.
    merged: u32,
    /// Node of the tournament over all slots: the slot with the best merge below it.
    winner: u32,
}

impl MergeSlot {
    /// An element to make a slice of: encoding overwrites it.
    pub const EMPTY: MergeSlot = MergeSlot { token: 0, prev: NONE, next: NONE, merged: NONE, winner: 0 };
}

/// The caller's token buffer.
pub(super) struct Output<'a> {
    pub tokens: &'a mut [u32],
    pub len: usize,
    pub error: Error,
}

impl Output<'_> {
    pub fn push(&mut self, token: u32) -> Result<(), Error> {
        *self.tokens.get_mut(self.len).ok_or(self.error)? = token;
        self.len += 1;
        Ok(())
    }
}

/// The stretch of text that is being collected, in the caller's scratch.
pub(super) struct Word<'a> {
    pub slots: &'a mut [MergeSlot],
    pub len: usize,
    pub need: usize,
}

impl Word<'_> {
    pub fn push(&mut self, token: u32) -> Result<(), Error> {
        let have = self.slots.len();
        let error = Error::BufferTooSmall { buffer: "merge scratch", need: self.need, have };
        *self.slots.get_mut(self.len).ok_or(error)? = MergeSlot { token, ..MergeSlot::EMPTY };
        self.len += 1;
        Ok(())
    }
}

/// Merges the pair with the best score, the leftmost of equals, until no pair is a piece; then
/// moves the word's tokens to the output. O(n log n): a tournament over the slots names the
/// best pair.
pub(super) fn merge(pieces: &Pieces<'_>, word: &mut Word<'_>, out: &mut Output<'_>) -> Result<(), Error> {
    let n = core::mem::take(&mut word.len);
    let Some(slots) = word.slots.get_mut(..n) else { return Ok(()) };
    let mut right = NONE;
    for (i, slot) in slots.iter_mut().enumerate().rev() {
        slot.prev = (i as u32).wrapping_sub(1); // NONE for the first
        slot.next = if i + 1 < n { i as u32 + 1 } else { NONE };
        slot.merged = pieces.pair(slot.token, right);
        right = slot.token;
    }
    for node in (1..n).rev() {
        play(pieces, slots, node);
    }
    // The final winner stands in node 1; a single slot has no match to play, and no pair.
    while let Some(left) = slots.get(1).map(|root| root.winner)
        && let Some(&MergeSlot { merged, prev, next, .. }) = slots.get(left as usize)
        && merged != NONE
    {
        let after = slots.get(next as usize).copied().unwrap_or(MergeSlot::EMPTY);
        let after_token = slots.get(after.next as usize).map_or(NONE, |slot| slot.token);
        if let Some(slot) = slots.get_mut(left as usize) {
            (slot.token, slot.next, slot.merged) = (merged, after.next, pieces.pair(merged, after_token));
        }
        if let Some(slot) = slots.get_mut(next as usize) {
            slot.merged = NONE;
        }
        if let Some(slot) = slots.get_mut(after.next as usize) {
            slot.prev = left;
        }
        if let Some(slot) = slots.get_mut(prev as usize) {
            slot.merged = pieces.pair(slot.token, merged);
        }
        for changed in [left, next, prev] {
            replay(pieces, slots, changed);
        }
    }
    let mut i = 0;
    while let Some(slot) = slots.get(i as usize) {
        out.push(slot.token)?;
        i = slot.next;
    }
    Ok(())
}

/// Plays the matches above a slot again after its merge has changed.
fn replay(pieces: &Pieces<'_>, slots: &mut [MergeSlot], slot: u32) {
    let mut node = (slot as usize).saturating_add(slots.len()) / 2;
    while node > 0 && node < slots.len() {
        play(pieces, slots, node);
        node /= 2;
    }
}

/// Plays one match: the better of the winners of nodes 2·node and 2·node + 1 wins. Nodes from n on
/// are the slots themselves.
fn play(pieces: &Pieces<'_>, slots: &mut [MergeSlot], node: usize) {
    let n = slots.len();
    let contender = |node: usize| {
        let slot = if node >= n { (node - n) as u32 } else { slots.get(node).map_or(0, |node| node.winner) };
        let score = slots.get(slot as usize).map_or(f32::NEG_INFINITY, |slot| pieces.score(slot.merged));
        (slot, score)
    };
    let (a, b) = (contender(2 * node), contender(2 * node + 1));
    let a_wins = a.1 > b.1 || (a.1 == b.1 && a.0 < b.0);
    if let Some(node) = slots.get_mut(node) {
        node.winner = if a_wins { a.0 } else { b.0 };
    }
}
