//! Makes simple stories from templates, for a first training run without any data. Names, places
//! and things stay the same through a story, so that a model can learn more than single words.

use fastrand::Rng;

/// Tells `n` stories. The same seed gives the same stories.
pub fn stories(seed: u64, n: usize) -> impl Iterator<Item = String> {
    let mut rng = Rng::with_seed(seed);
    (0..n).map(move |_| story(&mut rng))
}

/// The name of a hero, the kind of being, and its pronouns.
type Hero = (&'static str, &'static str, [&'static str; 3]);

const HE: [&str; 3] = ["he", "his", "him"];
const SHE: [&str; 3] = ["she", "her", "her"];
const HEROES: [Hero; 16] = [
    ("Lily", "girl", SHE),
    ("Tom", "boy", HE),
    ("Mia", "girl", SHE),
    ("Ben", "boy", HE),
    ("Anna", "girl", SHE),
    ("Max", "boy", HE),
    ("Sue", "girl", SHE),
    ("Tim", "boy", HE),
    ("Rosie", "rabbit", SHE),
    ("Bruno", "bear", HE),
    ("Pip", "mouse", HE),
    ("Kitty", "cat", SHE),
    ("Felix", "fox", HE),
    ("Dot", "duck", SHE),
    ("Hugo", "frog", HE),
    ("Bella", "bird", SHE),
];
const KINDS: [&str; 6] = ["little", "kind", "brave", "happy", "curious", "clever"];
/// Places, each with something to do there.
const PLACES: [(&str, &str); 10] = [
    ("the park", "play on the swings"),
    ("the forest", "climb the old trees"),
    ("the garden", "smell the flowers"),
    ("the beach", "build castles in the sand"),
    ("the river", "throw stones into the water"),
    ("the farm", "feed the animals"),
    ("the hill", "roll down in the grass"),
    ("the lake", "look at the fish"),
    ("the market", "taste the sweet fruit"),
    ("the meadow", "run after the butterflies"),
];
/// Things, each with its mishap.
const THINGS: [(&str, &str); 12] = [
    ("ball", "rolled away"),
    ("kite", "flew away"),
    ("hat", "fell into a hole"),
    ("boat", "floated away"),
    ("balloon", "went up into the sky"),
    ("toy car", "broke in two"),
    ("doll", "fell into the mud"),
    ("drum", "stopped making a sound"),
    ("book", "got wet"),
    ("bell", "got lost in the grass"),
    ("basket", "tipped over"),
    ("blanket", "got stuck on a branch"),
];
const LOOKS: [&str; 8] = ["red", "blue", "green", "yellow", "shiny", "small", "big", "soft"];
const FEELINGS: [&str; 5] = ["sad", "scared", "worried", "upset", "lost"];
const WEATHERS: [&str; 5] = ["sunny", "warm", "windy", "bright", "quiet"];
const FOODS: [&str; 6] = ["cookies", "apples", "berries", "cake", "soup", "bread"];

/// The sentences to choose from for each part of a story. `{h}` and `{f}` are the hero and the
/// friend, `{he}`, `{his}`, `{him}` and `{fe}`, `{fis}`, `{fim}` are their pronouns. Any other name
/// in braces stands for an entry of a list above.
const PARTS: [&[&str]; 9] = [
    &[
        "Once upon a time, there was a {kind} {what} named {h}.",
        "One day, a {kind} {what} named {h} woke up early.",
        "There was once a {kind} {what}. {His} name was {h}.",
    ],
    &[
        "{h} had a {look} {thing}. {He} loved {his} {thing} very much.",
        "{h} liked to play with {his} {look} {thing}.",
        "For {his} birthday, {h} got a {look} {thing}.",
    ],
    &[
        "It was a {weather} day, so {h} went to {place} to {do}.",
        "On a {weather} morning, {he} took the {thing} to {place}.",
        "{h} wanted to {do}, so {he} walked to {place}.",
    ],
    &[
        "At {place}, {h} met a {fwhat} named {f}. \"Hello, {f}!\" said {h}.",
        "{f} the {fwhat} was at {place} too. \"Can I play with you?\" asked {f}.",
        "There {he} saw {his} friend {f}, a {kind2} {fwhat}. They began to {do}.",
    ],
    &[
        "But then the {look} {thing} {happens}!",
        "Suddenly, the {thing} {happens}. \"Oh no, my {thing}!\" cried {h}.",
        "They played for a long time, but then the {thing} {happens}.",
    ],
    &[
        "{h} was very {feeling}. {He} did not know what to do.",
        "{h} felt {feeling} and began to cry.",
        "\"I am so {feeling},\" said {h}. \"I want my {look} {thing} back.\"",
    ],
    &[
        "{f} said, \"Do not be {feeling}, {h}. I will help you.\" {Fe} thought hard and had an idea.",
        "{f} gave {him} a hug. \"We can fix it together,\" {fe} said.",
        "\"Don't worry,\" said {f}. {Fe} looked around {place} and called all {fis} friends.",
    ],
    &[
        "They worked together, and soon {h} had the {look} {thing} again.",
        "After a while, {f} came back with the {thing}. {h} was so happy that {he} jumped up and down.",
        "{h} and {f} tried and tried, and at last the {thing} was as good as new.",
    ],
    &[
        "\"Thank you, {f}!\" said {h}. They went home and ate {food}.",
        "{h} shared {his} {food} with {f}, and they were best friends from that day on.",
        "{h} thanked {fim} and learned that friends help each other. The end.",
        "When the sun went down, {h} and {f} ate {food} and told their moms about {place}.",
    ],
];

fn story(rng: &mut Rng) -> String {
    fn pick<T: Copy>(rng: &mut Rng, list: &[T]) -> T {
        list[rng.usize(..list.len())]
    }
    let (h, what, [he, his, him]) = pick(rng, &HEROES);
    let (f, fwhat, [fe, fis, fim]) = loop {
        let friend = pick(rng, &HEROES);
        if friend.0 != h {
            break friend;
        }
    };
    let ((place, to_do), (thing, happens)) = (pick(rng, &PLACES), pick(rng, &THINGS));
    let words = [
        ("h", h),
        ("what", what),
        ("he", he),
        ("his", his),
        ("him", him),
        ("f", f),
        ("fwhat", fwhat),
        ("fe", fe),
        ("fis", fis),
        ("fim", fim),
        ("place", place),
        ("do", to_do),
        ("thing", thing),
        ("happens", happens),
        ("kind", pick(rng, &KINDS)),
        ("kind2", pick(rng, &KINDS)),
        ("look", pick(rng, &LOOKS)),
        ("feeling", pick(rng, &FEELINGS)),
        ("weather", pick(rng, &WEATHERS)),
        ("food", pick(rng, &FOODS)),
    ];
    PARTS.map(|sentences| fill(pick(rng, sentences), &words)).join(" ")
}

/// Replaces each `{name}` with its word. If the name begins with a capital letter, so does the
/// word.
fn fill(template: &str, words: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (i, part) in template.split(['{', '}']).enumerate() {
        if i % 2 == 0 {
            text.push_str(part);
            continue;
        }
        let name = part.to_lowercase();
        let word = words.iter().find(|word| word.0 == name).map_or(part, |word| word.1);
        if name == part {
            text.push_str(word);
        } else {
            text.push_str(&word[..1].to_uppercase());
            text.push_str(&word[1..]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn stories_are_many_and_reproducible() {
        let known: HashSet<String> = stories(1, 5000).collect();
        assert!(stories(1, 5000).all(|story| known.contains(&story)));
        assert!(stories(2, 5000).all(|story| !known.contains(&story)), "an unseen story is not unseen");
        let sentences: HashSet<&str> = known.iter().flat_map(|story| story.split_inclusive(['.', '!', '?'])).collect();
        assert!(sentences.len() > 5000, "{} different sentences", sentences.len());
    }

    #[test]
    fn every_word_of_the_templates_is_filled_in() {
        for story in stories(3, 5000) {
            assert!(!story.contains(['{', '}']), "{story}");
            // The story has two heroes and no third.
            assert_eq!(HEROES.iter().filter(|hero| story.contains(hero.0)).count(), 2, "{story}");
        }
    }
}
