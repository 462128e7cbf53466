//! Packs chats into windows, each chat whole, and picks the windows of each batch in an order that
//! is a pure function of the seed and the number of the window.

use std::cell::RefCell;
use std::collections::HashMap;

use anyhow::ensure;
use crc32c::crc32c_append;
use infer_text::Rendered;

use crate::data::batches::{Batch, shuffled};
use crate::model::IGNORED;

/// Windows that are tried for a chat. More would hardly be filled better.
const OPEN: usize = 64;

/// Chats in windows of `len` positions.
pub struct Packed {
    len: usize,
    seed: u64,
    chats: Vec<Rendered>,
    /// The numbers of the chats of each window, in order.
    windows: Vec<Vec<u32>>,
    /// The windows in the order of an epoch.
    epoch: RefCell<Option<(u64, Vec<u32>)>>,
    /// Chats of which the last turns were left out.
    pub cut: usize,
    /// Chats that were left out: not even their first answer ends within a window.
    pub dropped: usize,
}

impl Packed {
    /// Packs chats. Too long ones are cut behind an answer, or left out. The seed decides which of
    /// them share a window, and the order of the windows in each epoch.
    ///
    /// # Errors
    /// No chat fits.
    pub fn new(chats: Vec<Rendered>, len: usize, seed: u64) -> anyhow::Result<Packed> {
        let all = chats.len();
        let mut cut = 0;
        let fitting = chats.into_iter().filter_map(|mut chat| {
            let n = end_of_answers(&chat, usize::MAX)?;
            let fits = end_of_answers(&chat, len + 1)?;
            cut += usize::from(fits < n);
            chat.tokens.truncate(fits);
            chat.answer.truncate(fits);
            Some(chat)
        });
        let chats: Vec<_> = fitting.collect();
        ensure!(
            !chats.is_empty(),
            "no first answer of the {all} chats ends within {len} tokens: give a larger --max-seq-len"
        );
        let order = shuffled(chats.len() as u32, seed, u64::MAX, 0);
        let windows = pack(&order, len, |chat| chats[chat as usize].tokens.len() - 1);
        let dropped = all - chats.len();
        Ok(Packed { len, seed, chats, windows, epoch: RefCell::default(), cut, dropped })
    }

    /// Number of chats.
    pub fn chats(&self) -> usize {
        self.chats.len()
    }

    /// A chat, with everything up to its last answer.
    pub fn chat(&self, i: usize) -> &Rendered {
        &self.chats[i]
    }

    /// Number of tokens that are learned in an epoch.
    pub fn answers(&self) -> usize {
        self.chats.iter().map(|chat| chat.answer.iter().filter(|answer| **answer).count()).sum()
    }

    /// Entropy of the single tokens of the answers, in nats.
    pub fn unigram_entropy(&self) -> f64 {
        let mut counts = HashMap::<u32, u64>::new();
        let tokens = self.chats.iter().flat_map(|chat| chat.tokens.iter().zip(&chat.answer));
        tokens.filter(|(_, answer)| **answer).for_each(|(token, _)| *counts.entry(*token).or_default() += 1);
        let mut counts: Vec<u64> = counts.into_values().collect();
        counts.sort_unstable(); // so that the sum has one order
        let all = counts.iter().sum::<u64>() as f64;
        -counts.iter().map(|&n| n as f64 / all).map(|share| share * share.ln()).sum::<f64>()
    }

    /// The share of all positions that chats use.
    pub fn fullness(&self) -> f64 {
        let used: usize = self.chats.iter().map(|chat| chat.tokens.len() - 1).sum();
        used as f64 / (self.windows.len() * self.len) as f64
    }

    /// A checksum of what the windows hold.
    pub fn checksum(&self) -> u32 {
        self.chats.iter().fold(0, |sum, chat| {
            let bytes: Vec<u8> = chat.answer.iter().map(|answer| u8::from(*answer)).collect();
            crc32c_append(crc32c_append(sum, bytemuck::cast_slice(&chat.tokens)), &bytes)
        })
    }

    /// Number of windows in one epoch.
    pub fn sequences(&self) -> u64 {
        self.windows.len() as u64
    }

    /// The `n` windows from number `first` on, counted from the beginning of the training.
    pub fn training(&self, first: u64, n: usize) -> Batch {
        let (mut batch, mut known) = (Batch::default(), self.epoch.borrow_mut());
        for number in first..first + n as u64 {
            let (epoch, place) = (number / self.sequences(), number % self.sequences());
            let order = match known.take() {
                Some((there, order)) if there == epoch => order,
                _ => shuffled(self.windows.len() as u32, self.seed, epoch, 0),
            };
            self.push(&mut batch, order[place as usize] as usize);
            *known = Some((epoch, order));
        }
        batch
    }

    /// Batch `i` of `batches` batches of `n` windows each, spread evenly. `None` once there are no
    /// more windows.
    pub fn fixed(&self, i: usize, batches: usize, n: usize) -> Option<Batch> {
        let all = self.sequences();
        let wanted = (batches.saturating_mul(n) as u64).min(all);
        let numbers = (i * n) as u64..(((i + 1) * n) as u64).min(wanted);
        let mut batch = (!numbers.is_empty()).then(Batch::default)?;
        numbers.for_each(|number| self.push(&mut batch, (number * all / wanted) as usize));
        Some(batch)
    }

    /// Appends a window. Positions behind the last chat are a text of their own, of token 0, in
    /// which nothing counts.
    fn push(&self, batch: &mut Batch, window: usize) {
        let begin = batch.x.len();
        let starts = batch.starts.get_or_insert_default();
        for &chat in &self.windows[window] {
            let Rendered { tokens, answer } = &self.chats[chat as usize];
            let start = (batch.x.len() - begin) as u32;
            let n = tokens.len() - 1;
            batch.x.extend(&tokens[..n]);
            let targets = tokens.iter().zip(answer).skip(1);
            batch.y.extend(targets.map(|(token, answer)| if *answer { *token } else { IGNORED }));
            starts.extend(std::iter::repeat_n(start, n));
        }
        let end = begin + self.len;
        starts.resize(end, (batch.x.len() - begin) as u32);
        batch.x.resize(end, 0);
        batch.y.resize(end, IGNORED);
    }
}

/// The number of tokens up to the end of the last answer that ends within the first `most`. `None`
/// if no answer does: one that only begins there cannot teach where to stop.
fn end_of_answers(chat: &Rendered, most: usize) -> Option<usize> {
    let answer = &chat.answer;
    let ends_at = |&end: &usize| answer[end - 1] && answer.get(end) != Some(&true);
    (2..=answer.len().min(most)).rev().find(ends_at)
}

/// Puts things into windows of `len`: each into the open window in which it leaves least room.
fn pack(order: &[u32], len: usize, size: impl Fn(u32) -> usize) -> Vec<Vec<u32>> {
    let mut windows: Vec<Vec<u32>> = Vec::new();
    let mut open: Vec<(usize, usize)> = Vec::new(); // room, window
    for &thing in order {
        let size = size(thing);
        let best = (0..open.len()).filter(|&i| open[i].0 >= size).min_by_key(|&i| open[i].0);
        let i = best.unwrap_or_else(|| {
            if open.len() == OPEN {
                let fullest = (0..OPEN).min_by_key(|&i| open[i].0).unwrap_or(0);
                open.remove(fullest);
            }
            open.push((len, windows.len()));
            windows.push(Vec::new());
            open.len() - 1
        });
        open[i].0 -= size;
        windows[open[i].1].push(thing);
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chat of tokens that count up, with answers in these places.
    fn chat(first: u32, answers: &[(usize, usize)], n: usize) -> Rendered {
        let answer = (0..n).map(|i| answers.iter().any(|(begin, end)| (*begin..*end).contains(&i))).collect();
        Rendered { tokens: (first..first + n as u32).collect(), answer }
    }

    #[test]
    fn windows_hold_every_chat_whole_and_learn_answers_alone() {
        let lengths = [5, 9, 3, 8, 2, 7, 4, 6, 9, 3];
        let chats: Vec<_> =
            lengths.iter().enumerate().map(|(i, &n)| chat(100 * i as u32, &[(n / 2, n - 1)], n)).collect();
        let packed = Packed::new(chats.clone(), 8, 1).unwrap();
        let kept: Vec<_> = chats.iter().filter(|chat| chat.answer.contains(&true)).collect();
        assert_eq!((packed.chats(), packed.dropped), (kept.len(), chats.len() - kept.len()));
        let n = packed.sequences() as usize;
        let batch = packed.training(0, n);
        let starts = batch.starts.unwrap();
        assert_eq!((batch.x.len(), batch.y.len(), starts.len()), (8 * n, 8 * n, 8 * n));
        let mut seen = vec![false; lengths.len()];
        for (i, start) in starts.iter().enumerate() {
            let (position, start) = (i % 8, *start as usize);
            let (number, token) = ((batch.x[i] / 100) as usize, batch.x[i] % 100);
            let begin = i - position + start;
            if !batch.x[begin].is_multiple_of(100) || (batch.x[i] == 0 && i > begin) {
                continue; // padding
            }
            let target = (batch.y[i] != IGNORED).then_some(batch.y[i]);
            assert_eq!(token as usize, position - start, "each chat is read from its begin");
            let chat = &chats[number];
            let next = token as usize + 1;
            assert_eq!(target, chat.answer[next].then(|| chat.tokens[next]));
            seen[number] = true;
        }
        assert_eq!(seen.iter().filter(|seen| **seen).count(), kept.len());
        let learned = batch.y.iter().filter(|target| **target != IGNORED).count();
        assert_eq!(learned, packed.answers());
    }

    #[test]
    fn long_chats_are_cut_behind_an_answer() {
        let long = chat(0, &[(3, 6), (9, 12)], 14);
        let tokens =
            |len| Packed::new(vec![long.clone()], len, 1).map(|packed| (packed.chat(0).tokens.len(), packed.cut));
        assert_eq!(tokens(20).unwrap(), (12, 0), "what follows the last answer is not read");
        assert_eq!(tokens(11).unwrap(), (12, 0));
        assert_eq!(tokens(10).unwrap(), (6, 1));
        assert_eq!(tokens(5).unwrap(), (6, 1));
        assert!(tokens(4).unwrap_err().to_string().contains("larger --max-seq-len"));
        let packed = Packed::new(vec![long, chat(0, &[(1, 2)], 3)], 4, 1).unwrap();
        assert_eq!((packed.chats(), packed.cut, packed.dropped), (1, 0, 1));
    }

    #[test]
    fn windows_are_filled_and_epochs_differ() {
        let mut rng = fastrand::Rng::with_seed(1);
        let chats: Vec<_> = (0..500).map(|_| rng.usize(5..60)).map(|n| chat(0, &[(2, n)], n)).collect();
        let packed = Packed::new(chats.clone(), 128, 1).unwrap();
        assert!(packed.fullness() > 0.97, "{}", packed.fullness());
        let n = packed.sequences() as usize;
        let epochs = [packed.training(0, n), packed.training(n as u64, n)];
        assert_ne!(epochs[0].x, epochs[1].x);
        let again = Packed::new(chats.clone(), 128, 1).unwrap().training(n as u64, n);
        assert_eq!((again.x, again.y), (epochs[1].x.clone(), epochs[1].y.clone()));
        let other = Packed::new(chats, 128, 2).unwrap();
        assert_ne!(other.training(0, n).x, epochs[0].x);
        assert_eq!(other.checksum(), packed.checksum());
    }
}
