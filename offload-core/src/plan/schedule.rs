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
//! | upload into staging | decode of the latest earlier part whose staging overlaps | `StagingRead` |
//! | decode of a part | its upload | `Uploaded` |
//! | first write into a place | compute of the latest earlier visit whose place overlaps | `LastReader` |
//! | first write into a place | writer of the latest earlier visit whose place overlaps, on another stream | `LastWriter` |
//! | compute | what wrote the last part of the place | `Arrived` |
//!
//! The first write is the decode of the first part, or the upload of what arrives as stored. The writer is looked up on
//! the other stream of writers, because neither is ordered by the other when the visit between them was skipped; a decode
//! that waits for an upload of its own thereby waits for all earlier uploads. A decode at use lies on the stream of
//! computes: it needs none of the fences on computes and other decodes, and computes need none on it.
//!
//! # Order
//!
//! An operation may be listed as soon as everything that it waits for in this pass, and whatever precedes it on its
//! stream, is listed. Let its *turn* be the last compute, or decode at use, among those: it is listed right behind that
//! one, or at the head if there is none. In one turn visits go in order, upload before decode.

use super::last_use::LastUse;
use super::{Decoding, Dependency, Fence, Operation, PassRef, Place, Stage, VisitPlan};

/// Classes of writers in [`LastUse`]: uploads straight into a place, decodes into it.
const WRITERS: [Stage; 2] = [Stage::Upload, Stage::Decode];

/// Who used window and staging last, so far.
#[derive(Debug, Clone)]
struct Users {
    /// By visit.
    place: LastUse,
    /// By index in `staged`.
    staging: LastUse,
    /// Visits and parts that were staged.
    staged: Vec<(u32, u32)>,
    /// Last part of each visit.
    last_parts: Vec<u32>,
}

impl Users {
    fn new() -> Self {
        Self {
            place: LastUse::new(),
            staging: LastUse::new(),
            staged: Vec::new(),
            last_parts: Vec::new(),
        }
    }

    fn note_staging(&mut self, visit: u32, part: u32, staging: &Place) {
        let index = u32::try_from(self.staged.len()).expect("parts are fewer than tensors");
        self.staging.note(staging, 0, index);
        self.staged.push((visit, part));
    }

    /// Notes visits one after another.
    fn note_place(&mut self, visit: u32, plan: &VisitPlan) {
        if let Some(place) = &plan.place {
            self.place
                .note(place, usize::from(plan.is_decoded()), visit);
        }
        self.last_parts.push(plan.parts() - 1);
    }

    /// Users after a whole pass.
    fn of_pass(visits: &[VisitPlan]) -> Self {
        let mut users = Self::new();
        for (visit, plan) in (0..).zip(visits) {
            for (part, staging) in (0..).zip(&plan.staging) {
                users.note_staging(visit, part, staging);
            }
            users.note_place(visit, plan);
        }
        users
    }

    /// The last operation of `stage` of a visit.
    fn last_of(&self, stage: Stage, visit: u32) -> (u32, u32) {
        match stage {
            Stage::Compute => (visit, 0),
            Stage::Upload | Stage::Decode => (visit, self.last_parts[visit as usize]),
        }
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
    /// Fences on the latest earlier visit and part that `latest` finds: here, or else in the pass before, whatever its kind.
    fn fence(
        &self,
        after: &mut Vec<Dependency>,
        fence: Fence,
        stage: Stage,
        latest: impl Fn(&Users) -> Option<(u32, u32)>,
    ) {
        if let Some((visit, part)) = latest(&self.here) {
            after.push(Dependency {
                fence,
                pass: PassRef::This,
                visit,
                stage,
                part,
            });
            return;
        }
        for (kind, users) in self.before.iter().enumerate() {
            if let Some((visit, part)) = latest(users) {
                after.push(Dependency {
                    fence,
                    pass: PassRef::Previous(kind),
                    visit,
                    stage,
                    part,
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
                (upload.max(decode)).map(|visit| users.last_of(Stage::Compute, visit))
            });
        }
        for (class, stage) in WRITERS.into_iter().enumerate() {
            // What was uploaded for the visit itself lies behind every earlier upload.
            let behind = writer == Stage::Decode && stage == Stage::Upload && plan.is_uploaded();
            // What was decoded at use lies before the reader, which this waits for.
            let read = stream(stage) == stream(Stage::Compute);
            if stream(writer) != stream(stage) && !behind && !read {
                self.fence(after, Fence::LastWriter, stage, |users| {
                    users.place.latest(place)[class].map(|visit| users.last_of(stage, visit))
                });
            }
        }
    }
}

/// What a visit's operations are: upload and decode of each part, then compute.
fn stages(plan: &VisitPlan) -> impl Iterator<Item = (Stage, u32)> {
    let upload = plan.is_uploaded().then_some(Stage::Upload);
    let decode = plan.is_decoded().then_some(Stage::Decode);
    let of_part = move |part| {
        let stages = upload.into_iter().chain(decode);
        stages.map(move |stage| (stage, part))
    };
    (0..plan.parts())
        .flat_map(of_part)
        .chain([(Stage::Compute, 0)])
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
    let mut decode_turns: Vec<Vec<usize>> = Vec::with_capacity(visits.len());
    let mut stream_turns = [0; 2];
    for (visit, plan) in (0_u32..).zip(visits) {
        let own = |fence, stage, part| Dependency {
            fence,
            pass: PassRef::This,
            visit,
            stage,
            part,
        };
        decode_turns.push(vec![0; plan.parts() as usize]);
        for (stage, part) in stages(plan) {
            let mut after = Vec::new();
            match stage {
                Stage::Upload => match plan.staging.get(part as usize) {
                    None => fencer.first_write(&mut after, stage, plan),
                    Some(staging) => {
                        fencer.fence(&mut after, Fence::StagingRead, Stage::Decode, |users| {
                            let latest = users.staging.latest(staging)[0];
                            latest.map(|index| users.staged[index as usize])
                        });
                        fencer.here.note_staging(visit, part, staging);
                    }
                },
                Stage::Decode => {
                    if plan.is_uploaded() {
                        after.push(own(Fence::Uploaded, Stage::Upload, part));
                    }
                    if part == 0 {
                        fencer.first_write(&mut after, stage, plan);
                    }
                }
                Stage::Compute => {
                    let arrived = match plan.is_decoded() {
                        false => Stage::Upload,
                        true => Stage::Decode,
                    };
                    if plan.place.is_some() && !(plan.is_decoded() && at_use) {
                        after.push(own(Fence::Arrived, arrived, plan.parts() - 1));
                    }
                }
            }
            let turn = if decoding.stream(stage) == Stage::Compute as usize {
                // It opens its turn. Transfers of this and earlier visits are in earlier ones.
                turn_of(stage, visit)
            } else {
                let here = after.iter().filter(|one| one.pass == PassRef::This);
                let turns = here.map(|one| match one.stage {
                    Stage::Compute => turn_of(Stage::Compute, one.visit),
                    Stage::Decode => decode_turns[one.visit as usize][one.part as usize],
                    // Uploads are in turn with this one's stream, or its own upload.
                    Stage::Upload => stream_turns[Stage::Upload as usize],
                });
                let turn = turns.fold(stream_turns[stage as usize], usize::max);
                stream_turns[stage as usize] = turn;
                turn
            };
            if stage == Stage::Decode {
                decode_turns[visit as usize][part as usize] = turn;
            }
            turns[turn].push(Operation {
                stage,
                visit,
                part,
                after,
            });
        }
        fencer.here.note_place(visit, plan);
    }
    turns.into_iter().flatten().collect()
}
