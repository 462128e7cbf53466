//! Turns stories into token shards, and shards into batches; chats into windows, and those into
//! batches.

pub mod batches;
pub mod chats;
pub mod corpus;
pub mod download;
pub mod generated;
pub mod json;
pub mod packed;
pub mod pretokenize;
pub mod published;
pub mod separator;
pub mod shards;
pub mod split;
pub mod tokenizer;
pub mod vocab;
