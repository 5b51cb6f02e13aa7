// A libnvrtc.so that compiles nothing: what it gives is what the libcuda.so beside it loads, a line with the module's name
// and the architecture, and the source.
//
// Environment:
//   FAKE_NVRTC_FAIL   a module that it does not compile
// Macros:
//   WITHOUT_BUILTINS  it lacks what it opens when it compiles
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

enum Code { OK = 0, INVALID_INPUT = 3, INVALID_PROGRAM = 4, INVALID_OPTION = 5, COMPILATION = 6, BUILTIN_OPERATION_FAILURE = 7 };

struct Program {
    std::string name, source, code, log;
};

int copy(const std::string& text, char* to) {
    memcpy(to, text.c_str(), text.size() + 1);
    return OK;
}

}  // namespace

#define API(name, ...) extern "C" __attribute__((visibility("default"))) int name(__VA_ARGS__)

API(nvrtcVersion, int* major, int* minor) {
    *major = 12;
    *minor = 8;
    return OK;
}

extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int code) {
    switch (code) {
        case OK: return "NVRTC_SUCCESS";
        case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
        case INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
        case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
        case COMPILATION: return "NVRTC_ERROR_COMPILATION";
        default: return "NVRTC_ERROR unknown";
    }
}

const int ARCHITECTURES[] = {80, 86, 89, 90};

API(nvrtcGetNumSupportedArchs, int* count) {
    *count = int(sizeof ARCHITECTURES / sizeof *ARCHITECTURES);
    return OK;
}

API(nvrtcGetSupportedArchs, int* all) {
    memcpy(all, ARCHITECTURES, sizeof ARCHITECTURES);
    return OK;
}

API(nvrtcCreateProgram, Program** out, const char* source, const char* name, int headers, const char* const*,
    const char* const*) {
    if (!source || !name || headers) return INVALID_INPUT;
    std::string module = name;
    size_t dot = module.rfind(".cu");
    if (dot != std::string::npos) module.erase(dot);
    *out = new Program{module, source, "", ""};
    return OK;
}

API(nvrtcCompileProgram, Program* program, int count, const char* const* options) {
    if (!program) return INVALID_PROGRAM;
    std::string architecture;
    for (int i = 0; i < count; i++) {
        for (const char* flag : {"--gpu-architecture=", "-arch="}) {
            if (!strncmp(options[i], flag, strlen(flag))) architecture = options[i] + strlen(flag);
        }
    }
    if (architecture.compare(0, 3, "sm_") && architecture.compare(0, 8, "compute_")) return INVALID_OPTION;
    if (program->source.find("#include \"") != std::string::npos) {
        program->log = program->name + ".cu: error: cannot open source file";
        return COMPILATION;
    }
#ifdef WITHOUT_BUILTINS
    program->log = "nvrtc: error: failed to open libnvrtc-builtins.so.12.8.\n  Make sure that it is installed correctly.";
    return BUILTIN_OPERATION_FAILURE;
#endif
    const char* fails = getenv("FAKE_NVRTC_FAIL");
    if (fails && program->name == fails) {
        program->log = program->name + ".cu(1): error: something\n  a line of it\n  and another";
        return COMPILATION;
    }
    program->code = "ANYFLEET FAKE CUBIN " + program->name + " " + architecture + "\n" + program->source;
    return OK;
}

// All sizes are with the NUL at the end.
API(nvrtcGetProgramLogSize, Program* program, size_t* size) {
    *size = program->log.size() + 1;
    return OK;
}
API(nvrtcGetProgramLog, Program* program, char* log) { return copy(program->log, log); }
API(nvrtcGetCUBINSize, Program* program, size_t* size) {
    *size = program->code.size() + 1;
    return OK;
}
API(nvrtcGetCUBIN, Program* program, char* code) { return copy(program->code, code); }
API(nvrtcGetPTXSize, Program* program, size_t* size) { return nvrtcGetCUBINSize(program, size); }
API(nvrtcGetPTX, Program* program, char* code) { return copy(program->code, code); }

API(nvrtcDestroyProgram, Program** program) {
    if (!program || !*program) return INVALID_PROGRAM;
    delete *program;
    *program = nullptr;
    return OK;
}
