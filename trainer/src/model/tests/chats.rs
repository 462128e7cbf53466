//! Windows of several texts, of which only the answers count.

use super::*;

/// Windows of several texts have the gradients of the texts alone, and the composed model's.
#[test]
fn packed_texts_do_not_see_each_other() {
    let all_heads = Config::new(16, 24, 2, 4, 130, 70);
    for config in [TINY, all_heads] {
        for lengths in [&[70][..], &[1, 69], &[16, 1, 20, 33], &[33, 37], &[5; 14]] {
            let case = Case::new(config, 2, 70);
            let starts = lengths.iter().scan(0, |next, &n| {
                let start = std::mem::replace(next, *next + n);
                Some(std::iter::repeat_n(start, n as usize))
            });
            let starts: Vec<u32> = starts.flatten().collect::<Vec<_>>().repeat(2);
            let packed = Batch { starts: Some(&starts), ..case.batch() };
            for dropout in [0.0, 0.3] {
                let options = Options { dropout, seed: 5, teacher: None };
                let (loss, gradients) = case.cpu_of(&packed, &options);
                let (expected_loss, expected) = case.composed_of(&packed, &options);
                assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{loss} {expected_loss}");
                // Sums of fewer numbers differ by more of the largest.
                case.assert_close(&gradients, &expected, 5e-5);
            }
            let (loss, gradients) = case.cpu_of(&packed, &Options::default());
            let counted = |targets: &[u32]| targets.iter().filter(|t| **t != IGNORED).count() as f32;
            let mut alone = case.model.zero_gradients().unwrap();
            let (mut sum, all) = (0.0, counted(&case.targets));
            let ends = (1..=starts.len()).filter(|&i| i % 70 == 0 || starts[i] as usize == i % 70);
            let mut first = 0;
            for end in ends {
                let text = std::mem::replace(&mut first, end)..end;
                let (tokens, targets) = (&case.tokens[text.clone()], &case.targets[text]);
                let batch = Batch { tokens, targets, starts: None, sequences: 1, length: tokens.len() };
                if counted(targets) > 0.0 {
                    let share = counted(targets) / all;
                    sum +=
                        share * case.model.loss_and_gradients(&batch, &Options::default(), share, &mut alone).unwrap();
                }
            }
            assert!((loss - sum).abs() < 1e-5 * sum, "{loss} {sum}");
            case.assert_close(&gradients, &case.to_vecs(&alone), 5e-5);
        }
    }
}

/// What PyTorch computed of the answers: see tests/reference/chats.py.
pub fn reference() -> Reference {
    Reference::of(include_bytes!("../../../tests/reference/chats.safetensors"))
}

/// Where the texts of chats.py begin, and the first target of each that counts.
const TEXTS: [&[(u32, usize)]; 2] = [&[(0, 2), (4, 6)], &[(0, 1), (6, 7), (8, 9)]];

/// The windows of chats.py; their starts are those of [`starts`].
pub fn answers() -> Case {
    let mut case = Reference::case(Reference::GROUPED);
    for (window, texts) in case.targets.chunks_exact_mut(9).zip(TEXTS) {
        texts.iter().for_each(|&(begin, first)| window[begin as usize..first].fill(IGNORED));
    }
    case
}

fn starts() -> Vec<u32> {
    let start = |texts: &[(u32, usize)], i| texts.iter().rfind(|(begin, _)| *begin <= i).unwrap().0;
    TEXTS.iter().flat_map(|texts| (0..9).map(move |i| start(texts, i))).collect()
}

/// Asserts that loss and gradients of the answers are PyTorch's, on every path.
pub fn agrees_with_pytorch(case: Case, name: &str, expected: &[Vec<f32>]) {
    let (starts, options) = (starts(), Options::default());
    let batch = Batch { starts: Some(&starts), ..case.batch() };
    let (cpu, composed) = (case.cpu_of(&batch, &options), case.composed_of(&batch, &options));
    for (loss, gradients) in [cpu, composed] {
        let expected_loss = reference().get(&format!("{name}.loss"))[0];
        assert!((loss - expected_loss).abs() < 1e-5, "{name}: loss {loss}, PyTorch {expected_loss}");
        case.assert_close(&gradients, expected, 1e-5);
    }
    let case = case.high();
    let batch = Batch { starts: Some(&starts), ..case.batch() };
    case.assert_close(&case.cpu_of(&batch, &options).1, expected, 1e-4);
}

#[test]
fn answers_agree_with_pytorch() {
    let (case, reference) = (answers(), reference());
    let name = |p: &Parameter<Cpu>| format!("packed.{}.{}", p.shape.name.as_str(), p.shape.layer);
    let expected: Vec<_> = case.model.parameters.iter().map(|p| reference.get(&name(p))).collect();
    agrees_with_pytorch(case, "packed", &expected);
}
