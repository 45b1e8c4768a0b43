//! A plan as JSON, and the check that JSON is a plan. It repairs nothing.
//!
//! What can be derived is derived again and compared: regions from one another, operations and fences from places, the
//! high-water mark from those. So a plan that was read is as safe to run as one that was made: no fence can be
//! missing. Times and gaps cannot be derived without the workload; they are checked for being numbers.

use super::live;
use super::schedule;
use super::{BlockPlan, Form, KindPlan, PLACE_ALIGN, Place, Plan, PlanError, padded};

/// Arena bytes of a plan that is read; sums of two such numbers do not overflow.
const MAX_ARENA_BYTES: u64 = 1 << 62;

/// The reason on one line, with nothing in it that steers a terminal: it may quote the text.
fn bad<T>(reason: impl Into<String>) -> Result<T, PlanError> {
    let mut line = String::new();
    for character in reason.into().chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    Err(PlanError::BadPlan { reason: line })
}

/// Fails with what `reason` says unless `holds`.
fn require(holds: bool, reason: impl FnOnce() -> String) -> Result<(), PlanError> {
    if holds { Ok(()) } else { bad(reason()) }
}

impl Plan {
    /// The plan as JSON; [`from_json`](Self::from_json) gives back an equal one.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a plan has string keys and finite numbers only")
    }

    /// Reads a plan that [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// [`PlanError::BadPlan`] when the text is not JSON of a plan, or not of one that the planner could have made.
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        let plan: Self = match serde_json::from_str(text) {
            Ok(plan) => plan,
            Err(error) => return bad(error.to_string()),
        };
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), PlanError> {
        self.check_regions()?;
        self.check_residents()?;
        require(!self.kinds.is_empty(), || "no pass kind".to_owned())?;
        let mut room = vec![None; self.blocks.len()];
        for kind in &self.kinds {
            self.check_visits(kind, &mut room)?;
            check_numbers(kind)?;
        }
        // From here on every place lies in its region, so ends cannot overflow.
        let visits: Vec<_> = self.kinds.iter().map(|kind| kind.visits.clone()).collect();
        let operations = schedule::operations(&visits, self.decoding);
        for (kind, operations) in self.kinds.iter().zip(&operations) {
            require(kind.operations == *operations, || {
                format!(
                    "operations of pass kind {} do not follow from its places",
                    kind.name
                )
            })?;
        }
        let high_water = self.arena.resident.bytes
            + self.arena.staging.bytes
            + live::most_live_bytes(&visits, &operations, self.decoding);
        require(self.high_water_bytes == high_water, || {
            format!(
                "high-water mark of {} bytes, but places come to {high_water}",
                self.high_water_bytes
            )
        })
    }

    fn check_regions(&self) -> Result<(), PlanError> {
        let mut offset = 0;
        for (name, region) in [
            ("resident", &self.arena.resident),
            ("window", &self.arena.window),
            ("staging", &self.arena.staging),
        ] {
            require(
                region.offset == offset
                    && region.bytes.is_multiple_of(PLACE_ALIGN)
                    && region.bytes <= MAX_ARENA_BYTES - offset,
                || {
                    format!(
                        "{name} region of {} bytes at {}, expected at {offset}",
                        region.bytes, region.offset
                    )
                },
            )?;
            offset += region.bytes;
        }
        require(self.arena_bytes == offset, || {
            format!(
                "arena of {} bytes, but its parts come to {offset}",
                self.arena_bytes
            )
        })?;
        require(self.arena_bytes <= self.budget_bytes, || {
            format!(
                "arena of {} bytes exceeds the budget of {}",
                self.arena_bytes, self.budget_bytes
            )
        })
    }

    fn check_residents(&self) -> Result<(), PlanError> {
        let mut places: Vec<&Place> = Vec::new();
        for block in &self.blocks {
            let BlockPlan {
                form,
                remainder,
                resident,
                packed,
                ..
            } = block;
            require(*form == Form::Resident || resident.is_none(), || {
                format!("{form} block {} has a resident place", block.block)
            })?;
            require((*form == Form::Packed) == packed.is_some(), || {
                format!("{form} block {} is packed or lacks it", block.block)
            })?;
            for place in [remainder, resident, packed].into_iter().flatten() {
                check_place(place, &self.arena.resident)?;
                places.push(place);
            }
        }
        places.sort_by_key(|place| place.offset);
        for pair in places.windows(2) {
            require(!pair[0].overlaps(pair[1]), || {
                format!(
                    "residents at {} and {} overlap",
                    pair[0].offset, pair[1].offset
                )
            })?;
        }
        Ok(())
    }

    /// `room` holds the bytes of place and staging of each streamed block, once a visit has told.
    fn check_visits(
        &self,
        kind: &KindPlan,
        room: &mut [Option<(u64, Vec<u64>)>],
    ) -> Result<(), PlanError> {
        require(u32::try_from(kind.visits.len()).is_ok(), || {
            format!("pass kind {} has too many visits", kind.name)
        })?;
        for (index, visit) in kind.visits.iter().enumerate() {
            let here = || format!("visit {index} of pass kind {}", kind.name);
            let Some(block) = self.blocks.get(visit.block) else {
                return bad(format!(
                    "{} is to block {} of {}",
                    here(),
                    visit.block,
                    self.blocks.len()
                ));
            };
            require(
                visit.place.is_some() == (block.form != Form::Resident),
                || format!("{} has a place in the window or lacks one", here()),
            )?;
            require(
                visit.staging.is_empty() || block.form == Form::Streamed,
                || format!("{} is {} and has staging", here(), block.form),
            )?;
            require(visit.packed == block.packed, || {
                format!("{} is packed elsewhere than its block", here())
            })?;
            if let Some(place) = &visit.place {
                check_place(place, &self.arena.window)?;
            }
            for staging in &visit.staging {
                check_place(staging, &self.arena.staging)?;
            }
            let staging = visit.staging.iter().map(|part| part.bytes).collect();
            let bytes = (visit.place.map_or(0, |place| place.bytes), staging);
            let known = room[visit.block].get_or_insert_with(|| bytes.clone());
            require(*known == bytes, || {
                format!(
                    "{} takes {bytes:?} bytes of window and staging, another visit of the block {known:?}",
                    here()
                )
            })?;
        }
        Ok(())
    }
}

fn check_place(place: &Place, region: &Place) -> Result<(), PlanError> {
    let fits = place.bytes > 0
        && place.bytes <= region.bytes
        && place.offset >= region.offset
        && place.offset - region.offset <= region.bytes - padded(place.bytes);
    require(fits && place.offset.is_multiple_of(PLACE_ALIGN), || {
        format!(
            "{} bytes at {} do not lie in the region of {} bytes at {}",
            place.bytes, place.offset, region.bytes, region.offset
        )
    })
}

fn check_numbers(kind: &KindPlan) -> Result<(), PlanError> {
    let certificate = &kind.certificate;
    for (what, number) in [
        ("predicted pass", kind.predicted_pass_s),
        ("predicted stall", kind.predicted_stall_s),
        ("predicted cold pass", kind.predicted_cold_pass_s),
        ("schedule bound", certificate.schedule_bound_s),
        ("placement bound", certificate.placement_bound_s),
        ("schedule gap", certificate.schedule_gap),
        ("placement gap", certificate.placement_gap),
    ] {
        require(number.is_finite() && number >= 0.0, || {
            format!("{what} of pass kind {} is {number}", kind.name)
        })?;
    }
    Ok(())
}
