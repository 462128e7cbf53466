//! Files where they are not expected: of other programs, mixed up, or about to be lost.

use super::*;

#[test]
fn files_of_other_programs_are_named() {
    let Some(models) = shared::file("data/models") else { return };
    let folder = scratch("foreign");
    std::fs::write(folder.join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{\"version\": \"1.0\", \"added_tokens\": []}").unwrap();
    std::fs::write(folder.join("broken.gguf"), [0; 100]).unwrap();
    std::fs::write(folder.join("story.txt"), "Once upon a time, there was a cat.").unwrap();
    for (path, words) in [
        (models.join("stories260K/tinyllamas-stories-260k-f32.gguf"), "it is a GGUF file"),
        (models.join("stories260K/tok512.model"), "it is a tokenizer.model of SentencePiece"),
        (models.join("llama2xs_ckpt/ckpt.pt"), "it is a PyTorch checkpoint"),
        (models.join("meta_random/demo_rand_params.pth"), "it is a PyTorch checkpoint"),
        (folder.join("model.safetensors"), "it is a safetensors file"),
        (folder.join("tokenizer.json"), "it is a tokenizer.json of Hugging Face"),
        (folder.join("broken.gguf"), "by its name it is a GGUF file"),
        (folder.join("story.txt"), "it is a text"),
    ] {
        let path = path.to_str().unwrap();
        for command in [&[][..], &["inspect"], &["bench"]] {
            assert_fails(&run(&[command, &[path]].concat()), 1, &[path, words, "not a llama2.c model"]);
        }
        assert_fails(&run(&["quantize", path, "out.bin"]), 1, &[path, words]);
        assert_fails(&run(&["tokenize", "-z", path, "x"]), 1, &[path, words, "not a tokenizer.bin"]);
    }
    let (model, tok) = stories().unwrap();
    assert_fails(&run(&[&tok]), 1, &["tok512.bin", "it is a tokenizer.bin", "-z"]);
    assert_fails(&run(&[&model, "-z", &model]), 1, &["it is a model", "-z"]);
    assert_fails(&run(&["tokenize", "-z", &model, "x"]), 1, &["it is a model"]);
}

#[test]
fn the_current_folder_is_the_last_place_of_the_tokenizer() {
    let (folder, model) = random_model("places", |_| {});
    let (elsewhere, here) = (folder.join("elsewhere"), folder.join("here"));
    std::fs::create_dir_all(&elsewhere).unwrap();
    std::fs::create_dir_all(&here).unwrap();
    let moved = elsewhere.join("model.bin");
    let story = run_in(&here, &[&model, "-s", "1", "-n", "20"]);
    std::fs::rename(&model, &moved).unwrap();
    std::fs::rename(folder.join("tokenizer.bin"), here.join("tokenizer.bin")).unwrap();
    let moved = moved.to_str().unwrap();
    assert!(!stderr(&story).contains("current folder"));
    let found = run_in(&here, &[moved, "-s", "1", "-n", "20"]);
    assert_eq!(stdout(&found), stdout(&story));
    assert!(stderr(&found).contains("using tokenizer.bin of the current folder"));
    std::fs::write(here.join("text.txt"), "a b a").unwrap();
    stdout(&run_in(&here, &["perplexity", moved, "text.txt", "--window", "2"]));
    assert_fails(&run_in(&folder, &[moved]), 1, &["elsewhere/tokenizer.bin", "in the current folder", "-z"]);
}

/// A model that can be quantised, with its tokenizer.
fn quantisable(test: &str) -> (PathBuf, String) {
    let (folder, model) = random_model(test, |model| *model = RandomModel::new(config(8, 12, 1, 2, 1), 3));
    std::fs::create_dir_all(folder.join("out")).unwrap();
    (folder, model)
}

#[test]
fn quantize_brings_the_tokenizer_along() {
    let (folder, model) = quantisable("quantize_tokenizer");
    let out = folder.join("out/int8.bin");
    let tokenizer = || std::fs::read(folder.join("out/tokenizer.bin")).unwrap();
    stdout(&run(&["quantize", &model, out.to_str().unwrap()]));
    assert_eq!(tokenizer(), std::fs::read(folder.join("tokenizer.bin")).unwrap());
    stdout(&run(&[out.to_str().unwrap(), "-n", "5"]));
    stdout(&run(&["quantize", &model, out.to_str().unwrap()])); // the same tokenizer is no obstacle

    // One that differs is: neither it nor the model is touched.
    let other = tokenizer_file(&["x", "y"], 300);
    std::fs::write(folder.join("out/tokenizer.bin"), &other).unwrap();
    std::fs::write(&out, b"an older file").unwrap();
    let refused = run(&["quantize", &model, out.to_str().unwrap()]);
    assert_fails(&refused, 1, &["out/tokenizer.bin is there and differs", "another folder"]);
    let beside = ["quantize", &model, out.to_str().unwrap(), "-z", folder.join("out/tokenizer.bin").to_str().unwrap()]
        .map(String::from);
    // The same holds where nothing tells whose tokenizer it is, until -z does.
    std::fs::remove_file(folder.join("tokenizer.bin")).unwrap();
    assert_fails(&run(&["quantize", &model, out.to_str().unwrap()]), 1, &["out/tokenizer.bin is there", "-z"]);
    assert_eq!((tokenizer(), std::fs::read(&out).unwrap()), (other.clone(), b"an older file".to_vec()));
    stdout(&run(&beside.iter().map(String::as_str).collect::<Vec<_>>()));
    assert_eq!(tokenizer(), other);
    assert_ne!(std::fs::read(&out).unwrap(), b"an older file");

    // A tokenizer that is cut, or none at all.
    std::fs::write(folder.join("tokenizer.bin"), &other[..other.len() - 1]).unwrap();
    std::fs::create_dir_all(folder.join("new")).unwrap();
    let new = folder.join("new/int8.bin");
    assert_fails(&run(&["quantize", &model, new.to_str().unwrap()]), 1, &["token 299 of 300", "-z"]);
    assert_eq!(std::fs::read_dir(folder.join("new")).unwrap().count(), 0);
    std::fs::remove_file(folder.join("tokenizer.bin")).unwrap();
    let output = run(&["quantize", &model, new.to_str().unwrap()]);
    assert!(output.status.success() && stderr(&output).contains("there is no tokenizer.bin"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(folder.join("new")).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn pipes_in_the_place_of_files_are_refused_not_waited_for() {
    let (folder, model) = quantisable("pipes");
    assert!(Command::new("mkfifo").arg(folder.join("pipe")).status().unwrap().success());
    for args in [
        &["pipe"][..],
        &["model.bin", "-z", "pipe"],
        &["inspect", "pipe"],
        &["tokenize", "-z", "pipe", "x"],
        &["quantize", "pipe", "int8.bin"],
        &["quantize", "model.bin", "int8.bin", "-z", "pipe"],
    ] {
        assert_fails(&run_in(&folder, args), 1, &["pipe", "not a regular file"]);
    }
    assert_fails(&run_in(&folder, &["quantize", "model.bin", "pipe"]), 2, &["not a regular file"]);
    std::fs::rename(folder.join("pipe"), folder.join("out/tokenizer.bin")).unwrap();
    assert_fails(
        &run(&["quantize", &model, folder.join("out/int8.bin").to_str().unwrap()]),
        1,
        &["not a regular file"],
    );
    // A text may come through a pipe.
    let fed = Command::new("sh")
        .args(["-c", "mkfifo text; (echo a b a b > text &); exec \"$0\" perplexity model.bin text --window 2"])
        .arg(env!("CARGO_BIN_EXE_infer-cli"))
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(stdout(&fed).contains("predicted"));
}

#[cfg(unix)]
#[test]
fn quantize_never_overwrites_its_input() {
    let (folder, model) = quantisable("quantize_input");
    let before = std::fs::read(&model).unwrap();
    std::os::unix::fs::symlink(&model, folder.join("symlink.bin")).unwrap();
    std::fs::hard_link(&model, folder.join("hard.bin")).unwrap();
    let tokenizer = folder.join("tokenizer.bin");
    for (input, output) in [
        ("model.bin", "model.bin"),
        ("model.bin", "./out/../model.bin"),
        ("model.bin", &model),
        ("model.bin", "symlink.bin"),
        ("symlink.bin", "model.bin"),
        ("model.bin", "hard.bin"),
    ] {
        assert_fails(&run_in(&folder, &["quantize", input, output]), 2, &["the input itself"]);
    }
    assert_fails(&run_in(&folder, &["quantize", "model.bin", "tokenizer.bin"]), 2, &["tokenizer"]);
    assert_fails(&run_in(&folder, &["quantize", "model.bin", "out/tokenizer.bin"]), 2, &["tokenizer"]);
    std::fs::copy(&tokenizer, folder.join("tok.bin")).unwrap();
    assert_fails(
        &run_in(&folder, &["quantize", "model.bin", "tok.bin", "-z", "tok.bin"]),
        2,
        &["the tokenizer itself"],
    );
    assert_eq!(std::fs::read(&model).unwrap(), before);
    assert_eq!(std::fs::read(folder.join("tok.bin")).unwrap(), std::fs::read(tokenizer).unwrap());
}

#[test]
fn perplexity_does_not_depend_on_line_ends() {
    let folder = scratch("line_ends");
    let lf = "\nOnce upon a time\nthere was a cat.\n\nIt was red.\n<|endoftext|>\nOne day\nit sat down.\n";
    let perplexity = |text: &str| {
        std::fs::write(folder.join("text.txt"), text).unwrap();
        let flags = ["perplexity", "text.txt", "--window", "10", "--json"];
        stdout(&run_in(&folder, &flags)).to_owned()
    };
    let want = perplexity(lf);
    assert_eq!(perplexity(&lf.replace('\n', "\r\n")), want);
    assert_eq!(perplexity(&lf.replace('\n', "\r")), want);
    assert_eq!(perplexity(&format!("\u{feff}{lf}")), want);
    assert_eq!(stdout(&run_with_input(&["perplexity", "-", "--window", "10", "--json"], lf.as_bytes())), want);
    // The ids of tokenize are those of the text as it is.
    let ids = |text: &[u8]| run_with_input(&["tokenize"], text).stdout;
    assert_ne!(ids(b"a\r\nb"), ids(b"a\nb"));
}

#[test]
fn perplexity_takes_model_flags_and_text_in_any_order() {
    let (folder, model) = random_model("any_order", |_| {});
    std::fs::rename(folder.join("tokenizer.bin"), folder.join("tok.bin")).unwrap();
    std::fs::write(folder.join("text.txt"), "a b a b b a").unwrap();
    let want = run_in(&folder, &["perplexity", "-z", "tok.bin", "--window", "3", &model, "text.txt"]);
    assert!(stdout(&want).contains("windows          3 of 3"), "{}", stdout(&want));
    for order in [
        [model.as_str(), "-z", "tok.bin", "text.txt", "--window", "3"],
        [&model, "text.txt", "--window", "3", "-z", "tok.bin"],
        ["--window", "3", &model, "-z", "tok.bin", "text.txt"],
    ] {
        assert_eq!(stdout(&run_in(&folder, &[&["perplexity"], &order[..]].concat())), stdout(&want), "{order:?}");
    }
    assert_fails(&run_in(&folder, &["perplexity", &model, "text.txt", "third"]), 2, &["third"]);
    for (text, code, words) in [(".", 1, "a folder"), ("/dev/null", 1, "a device"), ("nowhere", 1, "nowhere")] {
        assert_fails(&run_in(&folder, &["perplexity", &model, "-z", "tok.bin", text]), code, &[words]);
    }
}

#[test]
fn json_of_the_other_commands() {
    let (folder, model) = random_model("json", |_| {});
    std::fs::write(folder.join("text.txt"), "a b a b b a").unwrap();
    let report = json(&run_in(&folder, &["perplexity", &model, "text.txt", "--window", "3", "--json"]));
    let per_token = report["nats_per_token"].as_f64().unwrap();
    assert_eq!((&report["windows"], &report["window"], &report["tokens"]), (&3.into(), &3.into(), &9.into()));
    assert_eq!(report["perplexity"].as_f64().unwrap(), per_token.exp());

    let report = json(&run(&["inspect", &model, "--json", "--plan", "max_seq=37,prompt=20"]));
    let file = std::fs::metadata(&model).unwrap().len();
    assert_eq!(
        (&report["version"], &report["weights"], &report["file_bytes"]),
        (&0.into(), &"f32".into(), &file.into())
    );
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors[0]["name"], "tok_emb");
    let last = tensors.last().unwrap();
    assert_eq!(last["offset"].as_u64().unwrap() + last["bytes"].as_u64().unwrap(), file);
    let table = run(&["inspect", &model, "--plan", "max_seq=37,prompt=20"]);
    assert!(stdout(&table).trim_end().ends_with(&format!(" {}", report["firmware"]["ram_bytes"])));
    assert_fails(&run(&["inspect", &model, "--json", "--c"]), 2, &["--json", "--c"]);

    let tokenizer = folder.join("tokenizer.bin");
    let tokenize = run(&["tokenize", "a\u{e9}", "-z", tokenizer.to_str().unwrap(), "--json"]);
    let pieces = ["\n<s>\n", " a", "\u{fffd}", "\u{fffd}"];
    assert_eq!(json(&tokenize), serde_json::json!({ "tokens": [1, 262, 198, 172], "pieces": pieces }));
}

#[test]
fn quantize_brings_tokenizer_json_and_chat_template_along() {
    use infer_core::format::{Header, SpecialTokens, TemplateName};
    let (folder, model) = quantisable("quantize_json");
    std::fs::remove_file(folder.join("tokenizer.bin")).unwrap();
    let json = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/llama3/tokenizer.json");
    std::fs::copy(json, folder.join("tokenizer.json")).unwrap();
    let shape = config(8, 12, 1, 2, 1);
    let header = Header::new(Version::V1, shape)
        .with_tokens(SpecialTokens::new(&[295], &[296, 299]).unwrap())
        .with_template(TemplateName::new("jinja").unwrap());
    let mut file = RandomModel::new(shape, 3).to_file(Version::V1).bytes().to_vec();
    file[..header.size()].copy_from_slice(&header.to_bytes().unwrap());
    std::fs::write(&model, file).unwrap();
    let out = |name: &str| folder.join("out").join(name);
    let quantize = || run(&["quantize", &model, out("int8.bin").to_str().unwrap()]);
    assert_fails(&quantize(), 1, &["chat_template.jinja"]);
    std::fs::write(folder.join("chat_template.jinja"), "{{ messages }}").unwrap();
    stdout(&quantize());
    for name in ["tokenizer.json", "chat_template.jinja"] {
        assert_eq!(std::fs::read(out(name)).unwrap(), std::fs::read(folder.join(name)).unwrap());
    }
    let quantized = Header::parse(&std::fs::read(out("int8.bin")).unwrap()).unwrap();
    assert_eq!((quantized.tokens, quantized.template), (header.tokens, header.template));
    stdout(&quantize()); // the same files are no obstacle

    std::fs::write(out("chat_template.jinja"), "{{ other }}").unwrap();
    assert_fails(&quantize(), 1, &["chat_template.jinja is there and differs"]);
    std::fs::remove_file(out("chat_template.jinja")).unwrap();
    std::fs::write(out("tokenizer.bin"), tokenizer_file(&[], 300)).unwrap();
    assert_fails(&quantize(), 1, &["tokenizer.bin is there", "instead of tokenizer.json"]);
    assert_fails(&run(&["quantize", &model, out("tokenizer.json").to_str().unwrap()]), 2, &["place of the model's"]);
}
