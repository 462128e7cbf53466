//! Checks that each part of an image fits its memory, with errors in words that the linker lacks.

/// A part of the image, its least size in bytes, and the name under which `memory.x` gives it a
/// memory.
pub struct Part {
    pub what: &'static str,
    pub memory: &'static str,
    pub bytes: usize,
}

/// Checks that the memories of a board, as its `memory.x` describes them, have room for all parts.
/// Code and other statics come on top. A length that is not a plain number is left to the linker.
pub fn check(map: &str, parts: &[Part]) -> Result<(), String> {
    let memory_of = |part: &Part| alias(map, part.memory).unwrap_or(part.memory);
    for part in parts {
        let memory = memory_of(part);
        let Some(length) = length(map, memory) else { continue };
        let inside: Vec<&Part> = parts.iter().filter(|part| memory_of(part) == memory).collect();
        let need: usize = inside.iter().map(|part| part.bytes).sum();
        if need > length {
            let list: Vec<String> = inside.iter().map(|part| format!("{} for {}", part.bytes, part.what)).collect();
            let remedy = match part.memory {
                "MODEL" => "Take a smaller MODEL",
                _ => "Lower MAX_SEQ, take KvType::Q8 (src/settings.rs) or a smaller MODEL",
            };
            return Err(format!(
                "{memory} has {length} bytes and would need {}, with code and other statics on top. {remedy}, or move \
                 MODEL, HOT or COLD to another memory (memory.x)",
                list.join(", ")
            ));
        }
    }
    Ok(())
}

/// The size of the stack that the board asks for.
pub fn stack_size(map: &str) -> Option<usize> {
    map.lines().find_map(|line| bytes(line.trim().strip_prefix("STACK_SIZE")?.trim().strip_prefix('=')?))
}

/// The memory that `REGION_ALIAS(name, memory)` names.
fn alias<'a>(map: &'a str, name: &str) -> Option<&'a str> {
    map.lines().find_map(|line| {
        let (alias, memory) = line.trim().strip_prefix("REGION_ALIAS(")?.split_once(')')?.0.split_once(',')?;
        (alias.trim() == name).then_some(memory.trim())
    })
}

/// The length in a line such as `RAM : ORIGIN = 0x20000000, LENGTH = 128K`.
fn length(map: &str, memory: &str) -> Option<usize> {
    map.lines().find_map(|line| {
        let rest = line.trim().strip_prefix(memory)?;
        bytes(rest.strip_prefix([' ', ':', '('])?.split_once("LENGTH")?.1.trim().strip_prefix('=')?)
    })
}

/// Reads a number of bytes, such as `1024`, `128K` or `1M`; `None` for anything else.
fn bytes(text: &str) -> Option<usize> {
    let text = text.split("/*").next()?.trim().trim_end_matches(';').trim();
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix(['M', 'm']).map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    let digits = digits.trim();
    let number = match digits.strip_prefix("0x") {
        Some(hex) => usize::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    number.ok()?.checked_mul(unit)
}

/// `ci.sh firmware` runs these, as cargo cannot run this package's tests on the host.
#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "MEMORY
{
  FLASH (rx) : ORIGIN = 0x08000000, LENGTH = 1M
  RAM   : ORIGIN = 0x20000000, LENGTH = 128K /* DTCM */
  AXI:ORIGIN=0x24000000,LENGTH=0x80000
  RAM2  : ORIGIN = 0, LENGTH = 64K - 4K
}
REGION_ALIAS(MODEL, FLASH);
REGION_ALIAS( HOT , RAM ); /* activations */
REGION_ALIAS(COLD, AXI);
STACK_SIZE = 8K; /* at least */
";

    #[test]
    fn memory_maps_are_read_as_people_write_them() {
        let lengths = ["FLASH", "RAM", "AXI", "RAM2", "ROM"].map(|memory| length(MAP, memory));
        assert_eq!(lengths, [Some(1 << 20), Some(128 << 10), Some(512 << 10), None, None]);
        assert_eq!(
            ["MODEL", "HOT", "COLD", "FLASH"].map(|n| alias(MAP, n)),
            [Some("FLASH"), Some("RAM"), Some("AXI"), None]
        );
        assert_eq!((stack_size(MAP), stack_size("")), (Some(8 << 10), None));
    }

    #[test]
    fn what_shares_a_memory_is_added_up() {
        let parts = |hot| {
            let part = |what, memory, bytes| Part { what, memory, bytes };
            [part("activations", "HOT", hot), part("the KV cache", "COLD", 500_000), part("the stack", "RAM", 8192)]
        };
        assert_eq!(check(MAP, &parts((128 << 10) - 8192)), Ok(()));
        let error = check(MAP, &parts((128 << 10) - 8191)).unwrap_err();
        assert!(
            error.starts_with("RAM has 131072 bytes and would need 122881 for activations, 8192 for the stack,"),
            "{error}"
        );
        assert!(error.contains("Lower MAX_SEQ"), "{error}");
        assert_eq!(check("", &parts(usize::MAX / 2)), Ok(()), "no map, no opinion");
    }
}
