"""Words of the field: they identify nobody, whoever bears one of them as a name.

Descriptions in free text are reduced to these words. In codes and other short texts, a patient called Head or Philips
is no reason to remove "HEAD" or "Philips".
"""

from __future__ import annotations

import re
from collections.abc import Collection

_WORDS = """
    2d 3d 4d abdomen abdominal ac acq acquisition adc add adrenal adult airway anatomical angio ankle anonymous
    anterior aorta aqc arm arterial artery artifact asl atrium average ax axial b0 b100 b1000 b1400 b1500 b200 b2000
    b3000 b400 b50 b500 b600 b800 background bh bladder blade body bold bolus bone bowel brain brainstem bravo breast
    breath breathhold bronchus canon cardiac cartilage caudate cavity cbf cbv cerebellum cerebral cervical chest cine
    circle ciss clariscan clavicle coil colon contrast cor cord core coronal corrected cortex cranium cspine ct cta
    ctv cube cyst deep default delayed derived detector diff diffusion diffusivity dir disc dixon dotarem dti dual dwi
    dynamic ear early ecg echo eddy edema elbow enhanced enhancing eovist ep2d epi equilibrium esophagus exam
    extremity eye fa fast fat fatsat fb fbp fdg feet female femur ffe fgre field fiesta filter filtered finger first
    fl2d fl3d flair flash flip foot forearm fov frfse frontal fs fse fspgr full function fusion ga gad gadavist
    gadolinium gadovist gallbladder gating gd ge general gland gradient grase gray gre grey gtv gyrus hand hardi haste
    head heart hepatic hfs high hip hippocampus hires hitachi hospital hr humerus iac ijv image imaging inferior
    inflow inj inphase insula intestine inversion iomeron ir iso isotropic isovue iv jaw joint kernel kidney kidneys
    knee l1 l5 larynx last late lateral lava left leg lesion lesions lge ligament limb liver lobar lobe lobes loc
    localizer low lower lspine lumbar lumen lung lymph mag magnevist magnitude male mandible map mass matter max
    maxilla mean medial mediastinum medical medium middle min minimum mip mixed mm mmi moco modified monochrome1
    monochrome2 motion mp2rage mpr mprage mprange mr mra mri ms mt mtt multi multiecho multihance multiplanar muscle
    nac nativ native neck necrosis nerve neuro no nobody node nodes nodule non none normal nuclear nucleus oar obl
    oblique occipital oedema ol omnipaque omniscan opp opposed optiray orbit orbits organ original other out outphase
    ovary pancreas parallel parietal parotid patient pd pdw pelvis perf perfusion pet petct phantom phase philips
    physician pilot pituitary plain plane plexus plus portal post post1 post2 post3 postcontrast posterior pre
    precontrast primary primovist prohance projection prone propeller prostate prot protocol proton psif pss ptv qsm
    quick rad radiologist rage rapid rare raw rcbf rcbv real recon reconstructed rectum ref reformat reformatted reg
    relaxation renal resampled research resolve rest restore reverse rf rib ribs right rm rot routine rtb sacrum sag
    sagittal satellite scan scout se se2d secondary segment segmentation sense sequence series sfov shimadzu short
    shoulder siemens signal single sinus skull slice slices small smooth soft space spair spc spgr spin spinal spine
    spir spiral spleen splenic spoiled ssfp standard star std ste sternum stir stomach stress structure study sub
    subtracted subtraction superior supine susceptibility swan swi sys system systems t1 t1w t2 t2s t2star t2w tag te
    technologist temporal tendon test testis tfe tfl thalamus thick thigh thin thoracic thorax thymus thyroid ti tibia
    tilt time tir tirm tissue toe tof tongue toshiba tra trace trachea trans transverse trufi trufisp tse tspine tumor
    tumour turbo uih ultrasound ultravist undefined united unknown unnamed upper ureter urethra utero uterus valve
    vein venous ventricle ventricles ventricular vertebra vessel vessels vibe view visipaque vista vol volume w wall
    wash water wb weighted white whole wholebody wholespine wi window with without wo wrist ww
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
