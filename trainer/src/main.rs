//! `trainer`
mod corpus;
mod shards;
fn main() {}
