//! Tells the code which Cortex-M extensions the target has: stable Rust does not show them as
//! target features.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(thumb_fpu, thumb_dsp)");
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").unwrap_or_default();
    if target.starts_with("thumbv7em") {
        println!("cargo::rustc-cfg=thumb_dsp");
    }
    if target.starts_with("thumb") && target.ends_with("-none-eabihf") {
        println!("cargo::rustc-cfg=thumb_fpu");
    }
}
