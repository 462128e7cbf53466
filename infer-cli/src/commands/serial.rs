//! The host end of a serial line: lets firmware tell a story.

mod check;
mod link;

use std::io::{self, Write};

use anyhow::ensure;
use infer_link::{MAX_PROMPT, Request, Statistics};

use self::check::check;
pub use self::link::stop;
use self::link::{Firmware, Link, stopped};
use crate::INTERRUPTED;
use crate::args::SerialArgs;
use crate::session::{ModelFiles, Usage, seed_or_clock};

pub fn run(args: &SerialArgs) -> anyhow::Result<()> {
    if args.prompt.len() > MAX_PROMPT {
        let len = args.prompt.len();
        return Err(Usage(format!("the prompt has {len} bytes: firmware takes at most {MAX_PROMPT}")).into());
    }
    let request = Request::Tell {
        temperature: args.sampling.temperature,
        top_p: args.sampling.top_p,
        seed: seed_or_clock(args.sampling.seed),
        steps: if args.steps == 0 { u32::MAX } else { u32::try_from(args.steps).unwrap_or(u32::MAX) },
        prompt: &args.prompt,
    };
    // Errors in the files are reported before the story begins.
    let files =
        args.check.as_deref().map(|model| ModelFiles::open(Some(model), args.tokenizer.as_deref())).transpose()?;
    let tokenizer = files.as_ref().map(ModelFiles::tokenizer).transpose()?;
    let mut link = Link::open(args)?;
    let firmware = link.hello()?;
    if let Some(files) = &files {
        ensure!(files.checksum() == firmware.model, "{} is not the one in the firmware", files.model_name());
    }
    let (tokens, statistics) = link.story(request, &firmware)?;
    report(&firmware, &statistics)?;
    if let Some((files, tokenizer)) = files.as_ref().zip(tokenizer.as_ref()) {
        check(files, tokenizer, request, &firmware, &tokens, &statistics)?;
    }
    if stopped() {
        std::process::exit(INTERRUPTED);
    }
    Ok(())
}

fn report(firmware: &Firmware, s: &Statistics) -> io::Result<()> {
    let rate = f64::from(s.positions) * f64::from(s.clock_hz) / (s.cycles.max(1) as f64);
    let cycles = s.cycles / u64::from(s.positions.max(1)) / 1000;
    let speed = match s.clock_is_real {
        true => format!("{rate:.1} tok/s at {} MHz", s.clock_hz / 1_000_000),
        false => "counted by an emulator: no measure of a chip's speed".into(),
    };
    writeln!(
        io::stderr(),
        "{}, {} kernels: {} positions, {cycles} thousand cycles each, {speed}, {} of {} bytes of stack used, logits hash \
         {:016x}",
        firmware.board,
        firmware.kernels,
        s.positions,
        s.stack_used,
        s.stack_size,
        s.logits_hash
    )
}
