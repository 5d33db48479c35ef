//! Changed inputs without end, for each parser.

use std::time::Duration;

use lapwing_evidence::Evidence;
use lapwing_evidence::fuzz::Inputs;
use lapwing_evidence::random::Random;

use crate::generate::Seeds;
use crate::judge::{self, Verdict};
use crate::memory;

/// Gives a parser `rounds` inputs, in the fault campaign twenty times as many, or as many as there is time for.
fn fuzz(check: u8, target: &str, rounds: u32, judge: impl Fn(&Seeds, &mut Random) -> Verdict) {
    let _alone = memory::alone();
    let seeds = Seeds::new();
    let mut evidence = Evidence::new(check, &format!("{target} that are changed at random"));
    judge::take_compared();
    let (mut counts, mut inputs) = ([0u64; 4], Inputs::new(rounds));
    inputs.judge(
        target,
        Duration::from_secs(30),
        |random| judge(&seeds, random),
        |took, verdict| {
            evidence.ended(took, verdict == Verdict::Exact);
            evidence.served_after(judge::take_compared());
            counts[match verdict {
                Verdict::Refused(_) => 0,
                Verdict::Unreadable(_) => 1,
                Verdict::Caught(_) => 2,
                Verdict::Exact => 3,
            }] += 1;
        },
    );
    evidence.faults(target, inputs.drawn());
    let [refused, unreadable, caught, exact] = counts;
    eprintln!(
        "{target}: {} inputs: {refused} refused, {unreadable} unreadable, {caught} caught, {exact} exact",
        inputs.drawn()
    );
    assert!(refused > 0 && (exact > 0 || !inputs.is_whole()), "{target}: changes do too much or too little");
}

#[test]
fn layers() {
    fuzz(14, "layers", 3000, |seeds, random| judge::layer(&seeds.layer(random)));
}

#[test]
fn indexes() {
    fuzz(16, "indexes", 400, |seeds, random| {
        let (index, which) = seeds.index(random);
        let (layer, tar, _) = &seeds.indexed[which];
        judge::index(&index, layer, tar)
    });
}

#[test]
fn tables_of_contents() {
    fuzz(16, "tables of contents", 800, |seeds, random| match seeds.toc(random) {
        Some((toc, stored, layer)) => judge::toc(&toc, &stored, &layer),
        None => Verdict::Refused("it has no place".to_owned()),
    });
}

#[test]
fn ztocs() {
    fuzz(16, "zTOCs", 800, |seeds, random| match seeds.ztoc(random) {
        Some((toc, stored, layer)) => judge::toc(&toc, &stored, &layer),
        None => Verdict::Refused("it has no place".to_owned()),
    });
}

#[test]
fn images() {
    fuzz(16, "images", 2000, |seeds, random| judge::image(&seeds.image(random)));
}

#[test]
fn profiles() {
    fuzz(16, "profiles", 20_000, |seeds, random| judge::profile(&seeds.profile(random)));
}
