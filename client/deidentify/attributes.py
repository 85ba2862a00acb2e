"""Which attributes are kept: a positive list. Everything that is not on it is removed, whatever it is called.

It is easier to believe than a list of what identifies: an attribute that nobody thought of, that a vendor made up or
that a later edition of the standard adds, is removed. On the list is what places voxels in the patient, gives them
values, and tells series and segments apart; of how the image was acquired, nearly only numbers and codes.
"""

from __future__ import annotations

from functools import cache

from pydicom.datadict import dictionary_has_tag, dictionary_is_retired, dictionary_VR, tag_for_keyword

NUMBERS = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "UL", "US", "SV", "UV", "US or SS", "AT"})
"""Types of which no value is text."""
TEXTS = frozenset({"LO", "LT", "SH", "ST", "UC", "UT"})
"""Types of free text."""
BULK = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "OB or OW", "US or OW"})
"""Types of raw bytes."""

_ACQUISITION = 0x0018
_GROUPS = frozenset({_ACQUISITION, 0x0028, 0x0054})
"""Groups whose numbers, codes and sequences are kept: acquisition, image presentation, nuclear medicine."""
_FIRST_OF_PROTOCOLS = 0x9900
"""From here on, the first of them describes protocols and equipment instead of the acquisition."""

_INSTANCE = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID
    SynchronizationFrameOfReferenceUID ConcatenationUID DimensionOrganizationUID
    ImageType FrameType Modality ConversionType PresentationIntentType PixelPresentation VolumetricProperties
    VolumeBasedCalculationTechnique ComplexImageComponent AcquisitionContrast
    SeriesNumber InstanceNumber AcquisitionNumber Manufacturer ManufacturerModelName SoftwareVersions
    InConcatenationNumber InConcatenationTotalNumber ConcatenationFrameOffsetNumber
"""
_PLACE = """
    ImagePositionPatient ImageOrientationPatient ImagePositionVolume ImageOrientationVolume SliceLocation
    PositionReferenceIndicator Laterality ImageLaterality FrameLaterality PatientOrientation ImagesInAcquisition
    TemporalPositionIdentifier NumberOfTemporalPositions TemporalResolution TemporalPositionIndex
    TemporalPositionTimeOffset StackID InStackPositionNumber FrameAcquisitionNumber DimensionIndexValues
    DimensionIndexPointer FunctionalGroupPointer DimensionOrganizationType NominalCardiacTriggerDelayTime
    NominalCardiacTriggerTimePriorToRPeak ActualCardiacTriggerTimePriorToRPeak ActualCardiacTriggerDelayTime
    IntervalsAcquired RRIntervalTimeNominal NominalPercentageOfCardiacPhase NominalPercentageOfRespiratoryPhase
    StartingRespiratoryAmplitude StartingRespiratoryPhase EndingRespiratoryAmplitude EndingRespiratoryPhase
    VolumeFrameOfReferenceUID
"""
_SEQUENCES = """
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence FrameContentSequence PlanePositionSequence
    PlaneOrientationSequence PlanePositionVolumeSequence PlaneOrientationVolumeSequence TemporalPositionSequence
    FrameAnatomySequence DimensionOrganizationSequence DimensionIndexSequence RespiratorySynchronizationSequence
    UnassignedSharedConvertedAttributesSequence UnassignedPerFrameConvertedAttributesSequence
    RealWorldValueMappingSequence MeasurementUnitsCodeSequence QuantityDefinitionSequence ConceptNameCodeSequence
    ConceptCodeSequence
    ReferencedImageSequence SourceImageSequence DerivationImageSequence DerivationCodeSequence
    PurposeOfReferenceCodeSequence ReferencedSeriesSequence ReferencedInstanceSequence
    StudiesContainingOtherReferencedInstancesSequence SourceImageEvidenceSequence ReferencedImageEvidenceSequence
    ConversionSourceAttributesSequence
    AnatomicRegionSequence AnatomicRegionModifierSequence PrimaryAnatomicStructureSequence
    PrimaryAnatomicStructureModifierSequence ViewCodeSequence
"""
_REFERENCES = """
    ReferencedSOPClassUID ReferencedSOPInstanceUID ReferencedFrameNumber SpatialLocationsPreserved
    RealWorldValueFirstValueMapped RealWorldValueLastValueMapped RealWorldValueSlope RealWorldValueIntercept
    RealWorldValueLUTData DoubleFloatRealWorldValueFirstValueMapped DoubleFloatRealWorldValueLastValueMapped
    LUTExplanation LUTLabel
    CodeValue LongCodeValue CodingSchemeDesignator CodingSchemeVersion CodeMeaning
"""
_ACQUISITION_TEXTS = """
    SequenceName PulseSequenceName ImagedNucleus ConvolutionKernel ReceiveCoilName TransmitCoilName FilterType
    ContrastBolusRoute AcquisitionMode TriggerSourceOrType ImageFilter ReconstructionMethod
    AttenuationCorrectionMethod ScatterCorrectionMethod DecayCorrection RescaleType WindowCenterWidthExplanation
    ModalityLUTType VOILUTFunction
"""
_SEGMENTS = """
    SegmentationType SegmentationFractionalType MaximumFractionalValue SegmentsOverlap SegmentSequence SegmentNumber
    SegmentLabel SegmentAlgorithmType SegmentAlgorithmName SegmentIdentificationSequence ReferencedSegmentNumber
    SegmentedPropertyCategoryCodeSequence SegmentedPropertyTypeCodeSequence
    SegmentedPropertyTypeModifierCodeSequence RecommendedDisplayGrayscaleValue RecommendedDisplayCIELabValue
    ContentLabel
"""
_STRUCTURES = """
    ReferencedFrameOfReferenceSequence RTReferencedStudySequence RTReferencedSeriesSequence ContourImageSequence
    StructureSetROISequence ROINumber ReferencedFrameOfReferenceUID ROIName ROIGenerationAlgorithm ROIVolume
    ROIContourSequence ROIDisplayColor ReferencedROINumber ContourSequence ContourNumber ContourGeometricType
    NumberOfContourPoints ContourData ContourSlabThickness ContourOffsetVector
    RTROIObservationsSequence ObservationNumber RTROIInterpretedType RTROIIdentificationCodeSequence
"""
_PIXELS = """
    PixelData FloatPixelData DoubleFloatPixelData PresentationLUTShape LUTData
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
"""
_TIMES = """
    StudyDate StudyTime SeriesDate SeriesTime AcquisitionDate AcquisitionTime ContentDate ContentTime
    AcquisitionDateTime FrameAcquisitionDateTime FrameReferenceDateTime StartAcquisitionDateTime
    EndAcquisitionDateTime DecayCorrectionDateTime RadiopharmaceuticalStartTime RadiopharmaceuticalStopTime
    RadiopharmaceuticalStartDateTime RadiopharmaceuticalStopDateTime ContrastBolusStartTime ContrastBolusStopTime
    StructureSetDate StructureSetTime
"""


def _tags(names: str) -> frozenset[int]:
    found = {name: tag_for_keyword(name) for name in names.split()}
    if unknown := [name for name, tag in found.items() if tag is None]:
        raise AssertionError(f"not of the standard: {unknown}")
    return frozenset(tag for tag in found.values() if tag is not None)


TIMES = _tags(_TIMES)
"""Dates and times, kept if dates are shifted."""
EMPTY_WITHOUT_DATES = _tags("StudyDate StudyTime AcquisitionDate AcquisitionTime StructureSetDate StructureSetTime")
"""Those of them that stay, without a value, if dates are removed: objects may lack their value but not them."""
DUMMY_WITHOUT_DATES = _tags(
    """
    SeriesDate SeriesTime ContentDate ContentTime AcquisitionDateTime FrameAcquisitionDateTime FrameReferenceDateTime
    StartAcquisitionDateTime EndAcquisitionDateTime DecayCorrectionDateTime
    """
)
"""Those that get a meaningless value, for some objects must have one."""
DEVICE = _tags("DeviceSerialNumber")
"""What tells one scanner from another of its model."""
REDUCED = _tags(
    """
    SequenceName PulseSequenceName ImagedNucleus ConvolutionKernel ReceiveCoilName TransmitCoilName FilterType
    ContrastBolusRoute TriggerSourceOrType ImageFilter ReconstructionMethod AttenuationCorrectionMethod
    ScatterCorrectionMethod RescaleType WindowCenterWidthExplanation SoftwareVersions PositionReferenceIndicator
    LUTExplanation LUTLabel StackID CodingSchemeVersion
    """
)
"""Short texts of which only words of the field and short codes stay."""
TOKENS = _tags("CodeValue LongCodeValue CodingSchemeDesignator DeviceSerialNumber")
"""Texts that hold any number, but no spaces."""
NUMBERS_OF_PEOPLE = _tags("SeriesNumber AcquisitionNumber")
"""Counters that people may set, and that may be missing: emptied if they are long."""
DESCRIPTIONS = _tags("SeriesDescription ProtocolName ContrastBolusAgent")
"""Descriptions in free text, of which only words of the field stay."""
AGENTS = _tags("ContrastBolusAgent")
"""Those of them of which it matters whether anything was stated."""
EMPTIED = _tags(
    """
    AccessionNumber ReferringPhysicianName PatientBirthDate PatientSex StudyID ContentCreatorName ContentDescription
    OperatorsName ROIInterpreter AcquisitionContextSequence
    """
)
"""What objects must have, but may have without a value."""
ALWAYS_THERE = _tags("AccessionNumber ReferringPhysicianName PatientBirthDate PatientSex StudyID")
"""Those of them that every image has."""
DUMMIES = {tag: text for name, text in [("StructureSetLabel", "STRUCTURES")] for tag in _tags(name)}
"""Labels that must have a value, and that nothing depends on."""
PSEUDONYMS = _tags("PatientName PatientID")

_NAMED = _tags(
    " ".join((_INSTANCE, _PLACE, _SEQUENCES, _REFERENCES, _ACQUISITION_TEXTS, _SEGMENTS, _STRUCTURES, _PIXELS))
)

_EXCEPT = _tags("UDISequence TransducerIdentificationSequence BiopsyTargetSequence")


@cache
def is_kept(tag: int) -> bool:
    """Return whether a value of an attribute may stay, once it has been looked at as its type demands.

    Those of ``TIMES``, ``DEVICE``, ``DESCRIPTIONS``, ``EMPTIED``, ``DUMMIES`` and ``PSEUDONYMS`` are no part of it.
    """
    if tag in _NAMED:
        return True
    group, number = tag >> 16, tag & 0xFFFF
    if group not in _GROUPS or tag in TIMES or not dictionary_has_tag(tag) or dictionary_is_retired(tag):
        return False
    if tag in _EXCEPT or (group == _ACQUISITION and number >= _FIRST_OF_PROTOCOLS):
        return False
    return dictionary_VR(tag) in NUMBERS | {"CS", "SQ"}
