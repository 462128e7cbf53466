//! Files that are wrong or mean harm: an error in words, soon, and without much memory.

use infer_text::{Message, Special, Template};
use serde_json::json;

use super::*;

/// The error of a tokenizer.json that is `smol` with a change.
fn error(change: impl FnOnce(&mut Value)) -> String {
    let mut file = smol();
    change(&mut file);
    match from_json(&file, 300) {
        Ok(_) => panic!("it is accepted"),
        Err(e) => format!("{e:#}"),
    }
}

#[test]
fn wrong_tokenizers_are_refused_in_words() {
    type Change<'a> = &'a dyn Fn(&mut Value);
    let cases: [(&str, Change<'_>); 10] = [
        ("missing field `model`", &|file| *file = json!({})),
        ("not BPE", &|file| file["model"] = json!({ "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" })),
        ("the id 4294967295, and the model 300 tokens", &|file| file["model"]["vocab"]["zz"] = json!(u32::MAX)),
        ("out of vocabulary", &|file| file["model"]["merges"] = json!(["zz a"])),
        ("its decoder is neither", &|file| {
            file["decoder"] = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true })
        }),
        ("its pre-tokenizer FixedLength", &|file| {
            file["pre_tokenizer"] = json!({ "type": "FixedLength", "length": 0 })
        }),
        ("its normalizer Precompiled", &|file| file["normalizer"] = json!({ "type": "Precompiled" })),
        ("times longer", &|file| {
            let bomb = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aaaaaaaaaa" });
            file["normalizer"] = json!({ "type": "Sequence", "normalizers": vec![bomb; 30] });
        }),
        ("its pre_tokenizer", &|file| {
            let split =
                json!({ "type": "Split", "pattern": { "Regex": "(" }, "behavior": "Isolated", "invert": false });
            file["pre_tokenizer"] = split;
        }),
        ("expected u32", &|file| file["added_tokens"][0]["id"] = json!(-1)),
    ];
    for (words, change) in cases {
        let error = error(change);
        assert!(error.contains(words) && !error.contains('\n'), "{words}: {error}");
    }
    let whole = TextTokenizer::whole_json(&serde_json::to_vec(&smol()).unwrap()).unwrap();
    assert_eq!(whole.vocab_size(), 271);
    let mut file = smol();
    file["added_tokens"][0]["id"] = json!(u32::MAX);
    let e = TextTokenizer::whole_json(&serde_json::to_vec(&file).unwrap()).unwrap_err();
    assert!(e.to_string().contains("the last has the id 4294967295"), "{e}");
}

#[test]
fn cut_and_deep_files_are_refused() {
    let file = serde_json::to_vec(&smol()).unwrap();
    for cut in (0..file.len()).step_by(97) {
        assert!(TextTokenizer::from_json(&file[..cut], &header(300)).is_err(), "{cut}");
    }
    for (open, key) in
        [("[", ""), ("{\"type\":\"Sequence\",\"normalizers\":[", "\"normalizer\":"), ("{\"a\":", "\"model\":")]
    {
        let deep = format!("{{{key}{}", open.repeat(1_000_000));
        assert!(TextTokenizer::from_json(deep.as_bytes(), &header(300)).is_err());
    }
    let large = vec![b' '; (1 << 25) + 1];
    let e = TextTokenizer::from_json(&large, &header(300)).unwrap_err();
    assert!(e.to_string().contains("at most 33554432"), "{e}");
}

#[test]
fn patterns_that_never_end_do_end() {
    let mut file = smol();
    let slow =
        json!({ "type": "Split", "pattern": { "Regex": "(a+)+$|(?=b)\\1c" }, "behavior": "Isolated", "invert": false });
    file["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [slow, file["pre_tokenizer"]] });
    if let Ok(tokenizer) = from_json(&file, 300) {
        let _ = tokenizer.encode(&format!("{}b", "a".repeat(200)), Special::AsText); // an error or tokens
    }
}

#[test]
fn templates_that_never_end_do_end() {
    let tokenizer = from_json(&smol(), 300).unwrap();
    let chat = [Message::new("user", "a")];
    for source in [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='aaaa') %}{% for a in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=['a']) %}{% for a in range(31) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 'a'.replace('', 'b' * 100000).replace('b', 'c' * 100000) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{% include 'chat' %}",
        "{% extends 'chat' %}",
        "{{ messages[0]['content'][0][0].x.y }}",
        "{{ 1 // 0 }}{{ 10 ** 10 ** 10 }}",
    ] {
        let start = std::time::Instant::now();
        let e = Template::jinja(source, None, None).and_then(|template| template.render(&tokenizer, &chat, true));
        let e = format!("{:#}", e.expect_err(source));
        assert!(e.len() < 300 && start.elapsed().as_secs() < 30, "{source}: {e}");
    }
    for source in [
        "{% if %}",
        "{{",
        "{% for %}",
        &"{% if 1 %}".repeat(100_000),
        &"(".repeat(100_000),
        &format!("{{{{ {} }}}}", "[".repeat(100_000)),
    ] {
        let _ = Template::jinja(source, None, None).map_err(|e| assert!(!format!("{e:#}").contains('\n'), "{e:#}"));
    }
}
