"""What can be wrong with the files of a model, as one tree: each lie a file can tell has its own class."""

from merge.errors import MergeError


class FileRefused(MergeError):
    """Base of everything that is wrong with a model's files."""

    code = "file_refused"


class HeaderTruncated(FileRefused):
    """The file ends before its header does, or before eight bytes."""

    code = "header_truncated"


class HeaderTooLarge(FileRefused):
    """The header claims to be larger than any honest one."""

    code = "header_too_large"


class HeaderNotJson(FileRefused):
    """The header is not a JSON object."""

    code = "header_not_json"


class HeaderTooDeep(FileRefused):
    """A JSON document is nested deeper than any honest one."""

    code = "header_too_deep"


class HeaderDuplicateKey(FileRefused):
    """A JSON object holds the same key twice, so two readers could see two files."""

    code = "header_duplicate_key"


class HeaderMetadataInvalid(FileRefused):
    """``__metadata__`` is not a map of strings to strings."""

    code = "header_metadata_invalid"


class TooManyTensors(FileRefused):
    """More tensors than the engine accepts in one file or model."""

    code = "too_many_tensors"


class TensorNameInvalid(FileRefused):
    """A tensor name that is empty, too long, or could be taken for a path."""

    code = "tensor_name_invalid"


class TensorEntryInvalid(FileRefused):
    """A header entry without exactly ``dtype``, ``shape`` and ``data_offsets`` of the right types."""

    code = "tensor_entry_invalid"


class DtypeUnknown(FileRefused):
    """A dtype that the safetensors format does not have."""

    code = "dtype_unknown"


class DtypeUnsupported(FileRefused):
    """A dtype of the format that cannot be read as plain numbers, such as a packed four-bit one."""

    code = "dtype_unsupported"


class GgufMalformed(FileRefused):
    """A GGUF file whose frame (mark, version, texts, lists, alignment) is not what the format allows."""

    code = "gguf_malformed"


class GgufUnsupported(FileRefused):
    """A GGUF file of an architecture, or with tensors, that have no counterpart in transformers here."""

    code = "gguf_unsupported"


class QuantizationMalformed(FileRefused):
    """The parts of a quantised tensor (codes, scales, zero points) do not fit together."""

    code = "quantization_malformed"


class RankTooHigh(FileRefused):
    """A tensor with more dimensions than the engine accepts."""

    code = "rank_too_high"


class ShapeOverflow(FileRefused):
    """The product of a shape is beyond any file."""

    code = "shape_overflow"


class OffsetsInvalid(FileRefused):
    """Offsets that run backwards or leave the file."""

    code = "offsets_invalid"


class OffsetsOverlap(FileRefused):
    """Two tensors claim the same bytes."""

    code = "offsets_overlap"


class OffsetsHole(FileRefused):
    """Bytes that belong to no tensor lie before or between tensors."""

    code = "offsets_hole"


class SizeMismatch(FileRefused):
    """Shape times dtype is not the span of the offsets."""

    code = "size_mismatch"


class FileSizeMismatch(FileRefused):
    """The file is longer or shorter than its header says."""

    code = "file_size_mismatch"


class FileNameInvalid(FileRefused):
    """A file name that could leave the model's folder."""

    code = "file_name_invalid"


class FileOutsideFolder(FileRefused):
    """A symbolic link leads out of the model's folder."""

    code = "file_outside_folder"


class FileMissing(FileRefused):
    """A file that the model needs is not there."""

    code = "file_missing"


class FileUnreadable(FileRefused):
    """The operating system would not read or write a file."""

    code = "file_unreadable"


class TextInvalid(FileRefused):
    """A JSON file beside the weights cannot be understood."""

    code = "text_invalid"


class VocabularyInvalid(FileRefused):
    """A tokenizer whose tokens cannot be told apart or lined up; the sentence names the token."""

    code = "vocabulary_invalid"


class WeightMapInvalid(FileRefused):
    """The shard index maps tensors to something that is not a shard of this model."""

    code = "weight_map_invalid"


class ShardMissing(FileRefused):
    """The shard index names a file that the model does not have."""

    code = "shard_missing"


class ShardIndexMismatch(FileRefused):
    """The shard index and the shards disagree about which tensor lies where."""

    code = "shard_index_mismatch"


class TensorTwice(FileRefused):
    """The same tensor is in two shards."""

    code = "tensor_twice"


class PickleRefused(FileRefused):
    """The weights are only there as Python pickles, which can run code when they are opened."""

    code = "pickle_refused"


class NoWeights(FileRefused):
    """There are no weights at all."""

    code = "no_weights"


class ModelNotFound(FileRefused):
    """There is no folder of that name."""

    code = "model_not_found"


class BundleRefused(FileRefused):
    """A bundle's manifest and its weights do not fit together."""

    code = "bundle_refused"


class BundleVersion(BundleRefused):
    """The bundle is of a format that this version does not read."""

    code = "bundle_version"


class MemberUnknown(BundleRefused):
    """The bundle holds no member of that name."""

    code = "member_unknown"


class BundleBaseChanged(BundleRefused):
    """The base is not the model that the bundle was made over."""

    code = "bundle_base_changed"
