//! The operations of a pass, their fences, and an order in which they can be submitted. It decides no offsets.
//!
//! # Fences
//!
//! Only what different streams do to one another needs one; a stream orders its own operations. "Earlier" means: the
//! latest overlapping visit of this pass, and if there is none, the latest of the pass before, for each kind that this
//! pass may have been.
//!
//! | operation | waits for | fence |
//! |---|---|---|
//! | upload into staging | decode of the latest earlier visit whose staging overlaps | `StagingRead` |
//! | decode | its upload | `Uploaded` |
//! | first write into a place | compute of the latest earlier visit whose place overlaps | `LastReader` |
//! | first write into a place | writer of the latest earlier visit whose place overlaps, on another stream | `LastWriter` |
//! | compute | what wrote the place | `Arrived` |
//!
//! The first write is the decode, or the upload of what arrives as stored. The writer is looked up on the other stream
//! of writers, because neither is ordered by the other when the visit between them was skipped; a decode that waits for
//! an upload of its own thereby waits for all earlier uploads. A decode at use lies on the stream of computes: it needs
//! none of the fences on computes and other decodes, and computes need none on it.
//!
//! # Order
//!
//! An operation may be listed as soon as everything that it waits for in this pass, and whatever precedes it on its
//! stream, is listed. Let its *turn* be the last compute, or decode at use, among those: it is listed right behind that
//! one, or at the head if there is none. In one turn visits go in order, upload before decode.

use super::last_use::LastUse;
use super::{Decoding, Dependency, Fence, Operation, PassRef, Stage, VisitPlan};

/// Classes of writers in [`LastUse`]: uploads straight into a place, decodes into it.
const WRITERS: [Stage; 2] = [Stage::Upload, Stage::Decode];

/// Who used window and staging last, so far.
#[derive(Debug, Clone)]
struct Users {
    place: LastUse,
    staging: LastUse,
}

impl Users {
    fn new() -> Self {
        Self {
            place: LastUse::new(),
            staging: LastUse::new(),
        }
    }

    fn note(&mut self, visit: u32, plan: &VisitPlan) {
        if let Some(place) = &plan.place {
            self.place
                .note(place, usize::from(plan.encoded().is_some()), visit);
        }
        if let Some(staging) = &plan.staging {
            self.staging.note(staging, 1, visit);
        }
    }

    /// Users after a whole pass.
    fn of_pass(visits: &[VisitPlan]) -> Self {
        let mut users = Self::new();
        for (visit, plan) in (0..).zip(visits) {
            users.note(visit, plan);
        }
        users
    }
}

/// One pass kind while its fences are looked up.
struct Fencer<'a> {
    /// Users in this pass, so far.
    here: Users,
    /// Users at the end of a pass of each kind.
    before: &'a [Users],
    decoding: Decoding,
}

impl Fencer<'_> {
    /// Fences on the latest earlier visit that `latest` finds: here, or else in the pass before, whatever its kind.
    fn fence(
        &self,
        after: &mut Vec<Dependency>,
        fence: Fence,
        stage: Stage,
        latest: impl Fn(&Users) -> Option<u32>,
    ) {
        if let Some(visit) = latest(&self.here) {
            after.push(Dependency {
                fence,
                pass: PassRef::This,
                visit,
                stage,
            });
            return;
        }
        for (kind, users) in self.before.iter().enumerate() {
            if let Some(visit) = latest(users) {
                after.push(Dependency {
                    fence,
                    pass: PassRef::Previous(kind),
                    visit,
                    stage,
                });
            }
        }
    }

    /// Fences of the first write into the place of `plan`, by `writer`.
    fn first_write(&self, after: &mut Vec<Dependency>, writer: Stage, plan: &VisitPlan) {
        let Some(place) = &plan.place else { return };
        let stream = |stage| self.decoding.stream(stage);
        if stream(writer) != stream(Stage::Compute) {
            self.fence(after, Fence::LastReader, Stage::Compute, |users| {
                let [upload, decode] = users.place.latest(place);
                upload.max(decode)
            });
        }
        for (class, stage) in WRITERS.into_iter().enumerate() {
            // What was uploaded for the visit itself lies behind every earlier upload.
            let behind = writer == Stage::Decode && stage == Stage::Upload && plan.is_uploaded();
            // What was decoded at use lies before the reader, which this waits for.
            let read = stream(stage) == stream(Stage::Compute);
            if stream(writer) != stream(stage) && !behind && !read {
                self.fence(after, Fence::LastWriter, stage, |users| {
                    users.place.latest(place)[class]
                });
            }
        }
    }
}

/// What a visit's operations are, in the order upload, decode, compute.
fn stages(plan: &VisitPlan) -> impl Iterator<Item = Stage> {
    let upload = plan.is_uploaded().then_some(Stage::Upload);
    let decode = plan.encoded().is_some().then_some(Stage::Decode);
    upload.into_iter().chain(decode).chain([Stage::Compute])
}

/// The operations of each kind, in an order in which they can be submitted.
pub(super) fn operations(kinds: &[Vec<VisitPlan>], decoding: Decoding) -> Vec<Vec<Operation>> {
    let before: Vec<Users> = kinds.iter().map(|visits| Users::of_pass(visits)).collect();
    kinds
        .iter()
        .map(|visits| of_kind(visits, &before, decoding))
        .collect()
}

/// The turn that the compute of `visit`, or its decode at use, opens; the head is turn 0.
fn turn_of(stage: Stage, visit: u32) -> usize {
    match stage {
        Stage::Compute => 2 * visit as usize + 2,
        Stage::Upload | Stage::Decode => 2 * visit as usize + 1,
    }
}

fn of_kind(visits: &[VisitPlan], before: &[Users], decoding: Decoding) -> Vec<Operation> {
    let mut fencer = Fencer {
        here: Users::new(),
        before,
        decoding,
    };
    let at_use = decoding == Decoding::AtUse;
    let mut turns: Vec<Vec<Operation>> = vec![Vec::new(); 2 * visits.len() + 1];
    let mut decode_turns = vec![0; visits.len()];
    let mut stream_turns = [0; 2];
    for (visit, plan) in (0_u32..).zip(visits) {
        let own = |fence, stage| Dependency {
            fence,
            pass: PassRef::This,
            visit,
            stage,
        };
        for stage in stages(plan) {
            let mut after = Vec::new();
            match stage {
                Stage::Upload => match &plan.staging {
                    None => fencer.first_write(&mut after, stage, plan),
                    Some(staging) => {
                        fencer.fence(&mut after, Fence::StagingRead, Stage::Decode, |users| {
                            users.staging.latest(staging)[1]
                        });
                    }
                },
                Stage::Decode => {
                    if plan.is_uploaded() {
                        after.push(own(Fence::Uploaded, Stage::Upload));
                    }
                    fencer.first_write(&mut after, stage, plan);
                }
                Stage::Compute => {
                    if plan.encoded().is_none() && plan.place.is_some() {
                        after.push(own(Fence::Arrived, Stage::Upload));
                    } else if plan.encoded().is_some() && !at_use {
                        after.push(own(Fence::Arrived, Stage::Decode));
                    }
                }
            }
            if decoding.stream(stage) == Stage::Compute as usize {
                // It opens its turn. Transfers of this and earlier visits are in earlier ones.
                let turn = turn_of(stage, visit);
                if stage == Stage::Decode {
                    decode_turns[visit as usize] = turn;
                }
                turns[turn].push(Operation {
                    stage,
                    visit,
                    after,
                });
                continue;
            }
            let mut turn = stream_turns[stage as usize];
            for dependency in after.iter().filter(|one| one.pass == PassRef::This) {
                turn = turn.max(match dependency.stage {
                    Stage::Compute => turn_of(Stage::Compute, dependency.visit),
                    Stage::Decode => decode_turns[dependency.visit as usize],
                    // Uploads are in turn with this one's stream, or its own upload.
                    Stage::Upload => stream_turns[Stage::Upload as usize],
                });
            }
            stream_turns[stage as usize] = turn;
            if stage == Stage::Decode {
                decode_turns[visit as usize] = turn;
            }
            turns[turn].push(Operation {
                stage,
                visit,
                after,
            });
        }
        fencer.here.note(visit, plan);
    }
    turns.into_iter().flatten().collect()
}
