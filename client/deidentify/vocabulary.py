"""Words of the field: they identify nobody, whoever bears one of them as a name.

Descriptions in free text are reduced to these words. In codes and other short texts, a patient called Head or Philips
is no reason to remove "HEAD" or "Philips".
"""

from __future__ import annotations

import re
from collections.abc import Collection

_WORDS = """
    2d 3d 4d abdomen abdominal ac acq acquisition adc add adrenal adult angio ankle anonymous aorta aqc arm arterial
    artery asl average ax axial b0 b100 b1000 b1400 b1500 b200 b2000 b3000 b400 b50 b500 b600 b800 bh bladder blade
    body bold bolus bone bowel brain brainstem bravo breast breath breathhold canon cardiac caudate cbf cbv cerebellum
    cerebral cervical chest cine circle ciss clariscan clavicle coil colon contrast cor cord coronal corrected cranium
    cspine ct cta cube deep default delayed derived detector diff diffusion diffusivity dir dixon dotarem dti dual dwi
    dynamic ear early ecg echo eddy elbow enhanced eovist ep2d epi equilibrium esophagus exam extremity eye fa fast
    fat fatsat fb fbp fdg feet female femur ffe fgre field fiesta filter filtered finger first fl2d fl3d flair flash
    flip foot forearm fov frfse fs fse fspgr full function fusion ga gad gadavist gadolinium gadovist gallbladder
    gating gd ge general gland gradient grase gre hand hardi haste head heart hfs high hip hippocampus hires hitachi
    hospital hr humerus iac ijv image imaging inflow inj inphase intestine inversion iomeron ir iso isotropic isovue
    iv jaw joint kernel kidney kidneys knee l1 l5 larynx last late lava left leg lge limb liver loc localizer low
    lower lspine lumbar lung lymph mag magnevist magnitude male mandible map max maxilla mean mediastinum medical
    medium min minimum mip mixed mm mmi moco modified monochrome1 monochrome2 motion mp2rage mpr mprage mprange mr mra
    mri ms mt mtt multi multiecho multihance multiplanar muscle nac nativ native neck neuro no nobody node nodes non
    none normal nuclear obl oblique ol omnipaque omniscan opp opposed optiray orbit orbits organ original other out
    outphase ovary pancreas parallel parotid patient pd pdw pelvis perf perfusion pet petct phantom phase philips
    physician pilot pituitary plain plane plus portal post post1 post2 post3 postcontrast pre precontrast primary
    primovist prohance projection prone propeller prostate prot protocol proton psif pss qsm quick rad radiologist
    rage rapid rare raw rcbf rcbv real recon reconstructed rectum ref reformat reformatted reg relaxation resampled
    research resolve rest restore reverse rf rib ribs right rm rot routine rtb sacrum sag sagittal satellite scan
    scout se se2d secondary sense sequence series sfov shimadzu short shoulder siemens signal single sinus skull slice
    slices small smooth soft space spair spc spgr spin spinal spine spir spiral spleen spoiled ssfp standard star std
    ste sternum stir stomach stress study sub subtracted subtraction supine susceptibility swan swi sys system systems
    t1 t1w t2 t2s t2star t2w tag te technologist temporal test testis tfe tfl thalamus thick thigh thin thoracic
    thorax thymus thyroid ti tibia tilt time tir tirm tissue toe tof tongue toshiba tra trace trachea trans transverse
    trufi trufisp tse tspine tumor tumour turbo uih ultrasound ultravist undefined united unknown unnamed upper ureter
    urethra utero uterus vein venous vertebra vessel vessels vibe view visipaque vista vol volume w wash water wb
    weighted whole wholebody wholespine wi window with without wo wrist ww
"""
WORDS = frozenset(_WORDS.split())
_COMPOUND = re.compile(rf"(?:{'|'.join(sorted(map(re.escape, WORDS), key=len, reverse=True))})+")
_NUMBER = re.compile(r"\d|\d{1,2}(?:\.\d{1,2})?mm|te\d{1,3}|b\d{1,4}")
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
    return " ".join(token for token in tokens if _is_word(token.lower()) and token.lower() not in names)


def without_words_of_the_field(text: str) -> str:
    """Return a text with these words blanked, so that names can be looked for in the rest."""
    return _TOKEN.sub(lambda found: " " if found[0].lower() in WORDS else found[0], text)


def _is_word(token: str) -> bool:
    if token in WORDS or _NUMBER.fullmatch(token):
        return True
    return any(map(str.isdigit, token)) and _COMPOUND.fullmatch(token) is not None
