// Tells a story with infer-core as WebAssembly, in Node or, without `main`, in a browser:
//
//   cargo rustc -p infer-core --release --crate-type cdylib --features capi --target wasm32-unknown-unknown
//   node story.mjs infer_core.wasm MODEL.bin TOKENIZER.bin [PROMPT [STEPS [TEMPERATURE [SEED]]]]
//
// The module imports nothing and has about 105 KB. It never allocates: this program grows the
// module's memory, and puts files, buffers and arguments there. The layout of structs is that of
// infer_core.h with pointers and size_t of 4 bytes; a function that returns an infer_error takes
// its address as first argument.

const BOS = 1;
const PARTS = 7; // of an infer_memory: address and bytes of each
const ERROR_BYTES = 64;
const CONTEXT_BYTES = 8 + 4 * 240;
const PROMPT_BYTES = 1024;

export class Llama {
  // `wasm`, `model` and `tokenizer` are the bytes of the files.
  constructor(wasm, model, tokenizer) {
    this.core = new WebAssembly.Instance(new WebAssembly.Module(wasm)).exports;
    this.free = this.core.__heap_base.value;
    this.error = this.allocate(ERROR_BYTES);
    this.message = this.allocate(256);
    this.result = this.allocate(8); // a number, or address and bytes of a text
    const modelAt = this.put(model);
    const tokenizerAt = this.put(tokenizer);
    const config = this.allocate(4 * 8);
    this.call("infer_read_config", modelAt, model.length, config);
    this.seqLen = this.u32(config, 7)[6];

    const limits = this.allocate(4 * 4);
    this.u32(limits, 4).set([this.seqLen, 1, PROMPT_BYTES, 0]); // positions, batch, prompt, f32 keys and values
    const memory = this.allocate(8 * PARTS);
    this.call("infer_plan", modelAt, model.length, limits, memory);
    for (let part = 0; part < PARTS; part++) {
      const address = this.allocate(this.u32(memory, 2 * PARTS)[2 * part + 1]);
      this.u32(memory, 2 * PARTS)[2 * part] = address; // anew: an allocation detaches the array
    }
    this.context = this.allocate(CONTEXT_BYTES);
    this.call("infer_init", this.context, modelAt, model.length, tokenizerAt, tokenizer.length, limits, memory);
    this.prompt = this.allocate(PROMPT_BYTES);
    this.tokens = this.allocate(4 * (PROMPT_BYTES + 2));
  }

  // Yields the text piece by piece, the prompt first.
  *story(prompt, steps, temperature, seed) {
    const text = new TextEncoder().encode(prompt);
    if (text.length > PROMPT_BYTES) throw new Error(`the prompt has more than ${PROMPT_BYTES} bytes`);
    this.bytes(this.prompt, text.length).set(text);
    const capacity = PROMPT_BYTES + 2;
    this.call("infer_encode", this.context, this.prompt, text.length, 1, this.tokens, capacity, this.result);
    const known = this.u32(this.tokens, this.u32(this.result, 1)[0]).slice();
    this.call("infer_set_sampler", this.context, temperature, 0.9, BigInt(seed));
    const decoder = new TextDecoder(); // one token need not be whole characters
    let token = BOS;
    for (let pos = 0; pos < Math.min(steps, this.seqLen); pos++) {
      this.u32(this.result, 1)[0] = token;
      this.call("infer_forward", this.context, this.result, 1, pos);
      let next = known[pos + 1];
      if (next === undefined) {
        this.call("infer_classify", this.context, 0, 0);
        this.call("infer_sample", this.context, this.result);
        next = this.u32(this.result, 1)[0];
      }
      if (next === BOS) break;
      this.call("infer_decode", this.context, token, next, this.result);
      const [address, length] = this.u32(this.result, 2);
      yield decoder.decode(this.bytes(address, length), { stream: true });
      token = next;
    }
  }

  // Calls a function that returns an infer_error.
  call(name, ...values) {
    this.core[name](this.error, ...values);
    if (this.u32(this.error, 1)[0] === 0) return;
    const length = this.core.infer_error_write(this.error, this.message, 256);
    throw new Error(new TextDecoder().decode(this.bytes(this.message, length)));
  }

  // The address of new bytes, all zero. WebAssembly's pages are zero, and nothing is ever freed.
  allocate(bytes) {
    const address = (this.free + 15) & ~15;
    this.free = address + bytes;
    const missing = this.free - this.core.memory.buffer.byteLength;
    if (missing > 0) this.core.memory.grow(Math.ceil(missing / 65536));
    return address;
  }

  put(bytes) {
    const address = this.allocate(bytes.length);
    this.bytes(address, bytes.length).set(bytes);
    return address;
  }

  bytes(address, length) {
    return new Uint8Array(this.core.memory.buffer, address, length);
  }

  u32(address, length) {
    return new Uint32Array(this.core.memory.buffer, address, length);
  }
}

async function main([wasm, model, tokenizer, prompt = "", steps = 256, temperature = 1, seed = 1]) {
  const { readFileSync } = await import("node:fs");
  const llama = new Llama(...[wasm, model, tokenizer].map((path) => readFileSync(path)));
  for (const text of llama.story(prompt, Number(steps), Number(temperature), seed)) process.stdout.write(text);
  process.stdout.write("\n");
}

if (globalThis.process?.argv[2]) await main(process.argv.slice(2));
