//! The groups of tensors outside the blocks.

use std::fmt;

macro_rules! groups {
    ($($(#[$doc:meta])* $group:ident = $name:literal;)*) => {
        /// A group of tensors outside the blocks, in the order of use.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Group {
            $($(#[$doc])* $group,)*
        }

        impl Group {
            /// Every group, in the order of use; the last, the head, is used after the blocks.
            pub const ALL: &'static [Group] = &[$(Self::$group),*];

            /// What its block is called, and what its tensors' canonical names begin with.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$group => $name),* }
            }
        }
    };
}

groups! {
    /// Latents to tokens.
    PatchEmbedding = "patch_embedding";
    /// Poses to tokens, of SCAIL.
    PatchEmbeddingPose = "patch_embedding_pose";
    /// Masks to tokens, of SCAIL 2.
    PatchEmbeddingMask = "patch_embedding_mask";
    /// Poses to tokens, of Animate.
    PosePatchEmbedding = "pose_patch_embedding";
    /// A reference image to tokens.
    RefConv = "ref_conv";
    /// What a camera does to tokens.
    ControlAdapter = "control_adapter";
    /// What sound to video is conditioned on.
    CondEncoder = "cond_encoder";
    /// The kinds of tokens of sound to video.
    TrainableCondMask = "trainable_cond_mask";
    /// Frames before, of sound to video.
    FramePacker = "frame_packer";
    /// Sound, of sound to video.
    CasualAudioEncoder = "casual_audio_encoder";
    /// Sound, of HuMo.
    AudioProj = "audio_proj";
    /// Motion of a face, of Animate.
    MotionEncoder = "motion_encoder";
    /// A face, of Animate.
    FaceEncoder = "face_encoder";
    /// The text's embedding to the width of the stream.
    TextEmbedding = "text_embedding";
    /// The timestep.
    TimeEmbedding = "time_embedding";
    /// The timestep to modulation.
    TimeProjection = "time_projection";
    /// An image's embedding to the width of the stream.
    ImgEmb = "img_emb";
    /// VACE's control latents to tokens.
    VacePatchEmbedding = "vace_patch_embedding";
    /// Tokens to latents.
    Head = "head";
}

impl Group {
    /// The group that the tensor `name` outside the blocks is in.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let (root, _) = name.split_once('.')?;
        Self::ALL.iter().copied().find(|group| group.name() == root)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
