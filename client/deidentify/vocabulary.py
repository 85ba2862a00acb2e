"""Words of the field: they identify nobody, whoever bears one of them as a name.

Descriptions in free text are reduced to these words. In codes and other short texts, a patient called Head or Philips
is no reason to remove "HEAD" or "Philips".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

_WORDS = """
    2d 3d 4d abdomen abdominal ac acq acquisition adc add adrenal adult airway anatomical angio ankle anonymous
    anterior aorta aqc arm arterial artery artifact asl atrium average ax axial b0 b100 b1000 b1400 b1500 b200 b2000
    b3000 b400 b50 b500 b600 b800 background bh bladder blade body bold bolus bone boneplus bowel brain brainstem
    bravo breast breath breathhold bronchus cancer canon carcinoma cardiac cartilage caudate cavity cbf cbv center
    centre cerebellum cerebral cervical chest chst cine circle ciss clariscan clavicle clinic clinical coil colon
    contrast cor cord core coronal corrected cortex cranium cspine ct cta ctv cube cyst deep default delayed
    department derived detail detector diff diffusion diffusivity dir disc dixon dotarem dti dual dwi dynamic ear
    early ecg echo eddy edema edge elbow enhanced enhancing eovist ep2d epi equilibrium esophagus exam extremity eye
    fa fast fat fatsat fb fbp fdg feet female femur ffe fgre field fiesta filter filtered finger first fl2d fl3d
    flair flash flip foot forearm fov frfse frontal fs fse fspgr full function fusion ga gad gadavist gadolinium
    gadovist gallbladder gating gd ge general gland gradient grase gray gre grey gtv gyrus hand hardi haste head
    heart hepatic hfs high hip hippocampus hires hitachi hospital hr humerus iac ijv image imaging inferior inflow
    inj injection inphase institut institute insula intestine inversion iomeron ir iso isotropic isovue iv jaw joint
    kernel kidney kidneys klinik klinikum knee l1 l5 larynx last late lateral lava left leg lesion lesions lge
    ligament limb liver lobar lobe lobes loc localizer low lower lspine lumbar lumen lung lymph mag magnevist
    magnitude male mandible map mass matter max maxilla mean medial mediastinum medical medium middle min minimum
    mip mixed mm mmi moco modified monochrome1 monochrome2 motion mp2rage mpr mprage mprange mr mra mri ms mt mtt
    multi multiecho multihance multiplanar muscle nac nativ native neck necrosis nerve neuro no nobody node nodes
    nodule non none normal nuclear nucleus oar obl oblique occipital oedema ol omnipaque omniscan oncology opp
    opposed optiray oral orbit orbits organ original other out outphase ovary pancreas parallel parietal parotid
    patient pd pdw pelvis perf perfusion pet petct phantom phase philips physician pilot pituitary plain plane
    plexus plus portal post post1 post2 post3 postcontrast posterior pre precontrast primary primovist prohance
    projection prone propeller prostate prot protocol proton psif pss ptv qsm quick rad radiologie radiologist
    radiology radiotherapy rage rapid rare raw rcbf rcbv real recon reconstructed rectal rectum ref reformat
    reformatted reg relaxation release renal resampled research resolve rest restore reverse rf rib ribs right rm
    rot routine rtb sacrum sag sagittal satellite scan scout se se2d secondary segment segmentation sense sequence
    series sfov sharp shimadzu short shoulder siemens signal single sinus skull slice slices small smooth soft
    software space spair spc spgr spin spinal spine spir spiral spleen splenic spoiled ssfp standard star std ste
    sternum stir stomach stress structure study sub subtracted subtraction superior supine susceptibility swan swi
    sys system systems t1 t1w t2 t2s t2star t2w tag te technologist temporal tendon test testis tfe tfl thalamus
    therapy thick thigh thin thoracic thorax thymus thyroid ti tibia tilt time tir tirm tissue toe tof tongue
    toshiba tra trace trachea trans transverse trufi trufisp tse tspine tumor tumour turbo uih ultra ultrasound
    ultravist undefined united university unknown unnamed upper ureter urethra utero uterus valve vein venous
    ventricle ventricles ventricular vertebra vessel vessels vibe view visipaque vista vol volume w wall wash water
    wb weighted white whole wholebody wholespine wi window window1 window2 with without wo wrist ww
"""
WORDS = frozenset(_WORDS.split())
_MODELS = """
    achieva advance advantage aera airis alexion allegra altaire altea amira aquilion architect artist asteion avanto
    biograph brightspeed brilliance brivo cima cirrus concerto connectome creator definition discovery dream drive duo
    eclipse elite emotion encore espree essenza evo evolution excel excite exel explorer fit flash force free galan
    gemini genesis gyroscan harmony hdx hdxt hispeed horizon hrrt ict idt incisive infinia ingenia ingenuity insight
    inspire integris intera intevo large lightspeed lumina magna magnetom magnus max mct millennium mmr naeotom
    neusoft oasis omni one open optima panorama performance perspective plus power precedence precision premier prime
    prisma pro prospeed pulse quantum quasar revolution scenaria scope select sensation signa skylight skyra sola
    somatom spectra spectral speed spirit star sunrise supria symbia symphony tim trio triotim triton truepoint turbo
    twin uct uexplorer ultra umi umr unity upmr vantage vario vct vereos verio vida vision viva voyager xeleris
    xvision xxl zenition
"""
_MODEL_WORDS = WORDS | frozenset(_MODELS.split())
_TERMS = """
    ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER OTHER MIXED NONE YES NO VOLUME SAMPLED DISTORTED MAGNITUDE PHASE
    REAL IMAGINARY CT MR PT SEG RTSTRUCT MONOCHROME1 MONOCHROME2 RGB PALETTE_COLOR YBR_FULL YBR_FULL_422 YBR_PARTIAL_420
    YBR_ICT YBR_RCT LINEAR LINEAR_EXACT SIGMOID IDENTITY INVERSE BINARY FRACTIONAL LABELMAP PROBABILITY OCCUPANCY MANUAL
    AUTOMATIC SEMIAUTOMATIC CLOSED_PLANAR CLOSEDPLANAR_XOR OPEN_PLANAR OPEN_NONPLANAR POINT PATIENT SLICE ORGAN GTV CTV
    PTV EXTERNAL AVOIDANCE SUPPORT MARKER REGISTRATION ISOCENTER BOLUS CAVITY STATIC DYNAMIC GATED RECON TOMO WHOLE_BODY
    BQML CNTS NORMAL COMPLETE PRODUCT RESEARCH SERVICE HFS HFP FFS FFP
"""
TERMS = frozenset(term.replace("PALETTE_COLOR", "PALETTE COLOR") for term in _TERMS.split())
"""Terms of the standard for codes that a file cannot do without, whoever has a part of one as a name."""
_SCHEMES = "DCM FMA I10 IBSI ICDO3 LN MA NCIt NEU RADELEMENT RADLEX SCT SNM3 SRT UCUM UMLS"
SCHEMES = frozenset(_SCHEMES.split())
"""Coding schemes whose meanings are those of a public catalogue."""
_SHORT_CODE = re.compile(r"\d{0,2}[A-Za-z]{1,2}(?:\d{1,3}[A-Za-z]{0,2})?|\d{1,3}")
"""Such as a kernel (Br40d), a unit (HU) or a nucleus (1H)."""
_MONTHS = "jan(uary)? feb(ruary)? mar(ch)? m[äa]e?rz apr(il)? may mai jun[ei]? jul[iy]? aug(ust)? sept?(ember)? "
_MONTHS += "o[ck]t(ober)? nov(ember)? de[cz](ember)?"
_MONTH = "|".join(_MONTHS.split()).replace("(", "(?:")
_DATE_OR_NUMBER = re.compile(
    rf"\d(?:[\W_]*\d){{3}}|\d[\W_]*(?:{_MONTH})(?![^\W\d_])|(?<![^\W\d_])(?:{_MONTH})[\W_]*\d", re.IGNORECASE
)
_COMPOUND = re.compile(rf"(?:{'|'.join(sorted(map(re.escape, WORDS), key=len, reverse=True))})+")
_NUMBER = re.compile(r"\d|\d{1,2}(?:\.\d{1,2})?mm|te\d{1,3}|b\d{1,4}")
_ROW_OF_DIGITS = re.compile(r"(?<!\S)\d(?: \d){3,}(?!\S)")
_WORD_OR_NUMBER = re.compile(r"[^\W\d_]+|\d+")
_TOKEN = re.compile(r"[^\W_]+(?:\.\d+[^\W_]*)?")
_LONGEST = 256


def words_of_the_field(text: str, names: Collection[str] = ()) -> str:
    """Return the words of a description that are words of the field, or short numbers; words with digits may be joined.

    Parameters
    ----------
    text
        The description; of a very long one its beginning.
    names
        Words that are removed all the same, in lower case: the patient may be called Short.
    """
    tokens = _TOKEN.findall(text[:_LONGEST])
    kept = " ".join(token for token in tokens if _is_word(token.lower()) and token.lower() not in names)
    return " ".join(_ROW_OF_DIGITS.sub("", kept).split())


def words_and_short_codes(text: str, names: Collection[str] = ()) -> str:
    """Return the words of a short text that are words of the field, or codes such as of kernels and units.

    The parameters are those of ``words_of_the_field``.
    """
    tokens = _TOKEN.findall(text[:_LONGEST])
    kept = (token for token in tokens if _is_word(token.lower()) or _SHORT_CODE.fullmatch(token))
    return " ".join(token for token in kept if token.lower() not in names)


def words_of_models(text: str, names: Collection[str] = ()) -> str:
    """Return the words of a text that occur in names of scanners, and numbers and short codes between them.

    The parameters are those of ``words_of_the_field``.
    """
    return " ".join(
        token for token in _TOKEN.findall(text[:_LONGEST]) if _is_of_model(token) and token.lower() not in names
    )


def holds_date_or_number(text: str) -> bool:
    """Return whether four digits follow each other, whatever signs are between them, or a digit and a month."""
    return _DATE_OR_NUMBER.search(unicodedata.normalize("NFKC", text)) is not None


def without_words_of_the_field(text: str) -> str:
    """Return a text with these words blanked, so that names can be looked for in the rest."""
    return _TOKEN.sub(lambda found: " " if found[0].lower() in WORDS else found[0], text)


def _is_of_model(token: str) -> bool:
    parts = _WORD_OR_NUMBER.findall(token.lower())
    return all(part.isdigit() or len(part) <= 2 or part in _MODEL_WORDS for part in parts)


def _is_word(token: str) -> bool:
    if token in WORDS or _NUMBER.fullmatch(token):
        return True
    return any(map(str.isdigit, token)) and _COMPOUND.fullmatch(token) is not None
